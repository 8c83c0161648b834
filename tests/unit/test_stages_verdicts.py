"""Verdicts on their way to the database, each run in its own slot."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from pipeline.flow import Stage
from pipeline.handlers import handler
from pipeline.handlers.registry import Handlers
from pipeline.handlers.runners import Runners
from pipeline.slots import Slots, Stop
from pipeline.stages import DeadLetter, Each, Execute, Record, RouteRetry
from pipeline.stages.each import MOST_VERDICTS
from pipeline.testing import ManualClock, MemoryLedger
from storage.errors import (
    Closed,
    LockTimeout,
    OutcomeUnknown,
    Refused,
    SchemaMismatch,
    StorageError,
    Unavailable,
)
from storage.model import Caller, Done, Interrupted, Priority, Reason, Recorded, Status
from tests.support.builders import dead, done, run
from tests.support.stages import busy, claimed, on_duty
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.stages.execute import Outcome
    from storage.model import Run, Verdict

CALLER = Caller()


class Faulty(MemoryLedger):
    """Fails the first record, and holds every record until `go` is set."""

    def __init__(self, failure: StorageError | None = None) -> None:
        super().__init__(ManualClock())
        self._failure = failure
        self._record = self.runs.record
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.runs.record = self.record  # type: ignore[method-assign]  # the fault

    async def record(self, verdicts: Sequence[Verdict]) -> list[Recorded]:
        self.asked.set()
        await self.go.wait()
        failure, self._failure = self._failure, None
        if failure:
            raise failure
        return await self._record(verdicts)


class TestRecord:
    async def test_a_verdict_is_recorded_once(self) -> None:
        ledger = MemoryLedger(ManualClock())
        task = await claimed(ledger, uuid4())
        record = Record(ledger.runs)
        assert await record([done(task)]) == [Recorded(Status.COMPLETED)]
        assert await record([dead(task)]) == [Recorded(None)]

    async def test_a_dead_letter_is_a_warning_in_the_log_and_a_success_is_not(self) -> None:
        ledger = MemoryLedger(ManualClock())
        record, good, bad = (
            Record(ledger.runs),
            await claimed(ledger, uuid4()),
            await claimed(ledger, uuid4()),
        )
        with capture_logs() as logs:
            await record([done(good)])
            await record([dead(bad)])
        assert [(entry["event"], entry["log_level"]) for entry in logs] == [
            ("completed", "info"),
            ("failed", "warning"),
        ]

    async def test_successes_by_the_dozen_are_one_line_and_a_failure_among_them_has_its_own(self) -> None:
        ledger = MemoryLedger(ManualClock())
        clock, worker_id = ManualClock(), uuid4()
        record = Record(ledger.runs, clock=clock)
        verdicts: list[Verdict] = [done(await claimed(ledger, worker_id)) for _ in range(30)]
        bad = dead(await claimed(ledger, worker_id))
        verdicts.append(bad)
        with capture_logs() as logs:
            await record(verdicts)
        assert [entry["event"] for entry in logs] == ["completed", "failed"]
        assert (logs[0]["tasks"], logs[0]["kinds"]) == (30, {"echo": 30})
        assert logs[1]["task_id"] == str(bad.run.task_id)

        async def told(count: int) -> list[int | None]:
            """How many tasks each line of so many successes is about; one of its own says none."""
            with capture_logs() as logs:
                await record([done(await claimed(ledger, worker_id)) for _ in range(count)])
            return [entry.get("tasks") for entry in logs]

        assert await told(15) == [None] * 15
        assert await told(15) == [15]  # more than there may be in a second
        await clock.advance(1.0)
        assert await told(20) == [None] * 20

    async def test_who_waits_is_woken_before_the_log_is_written(self) -> None:
        ledger, lines_when_woken = MemoryLedger(ManualClock()), list[int]()
        task, write = await claimed(ledger, uuid4()), ledger.runs.record

        async def waking(verdicts: Sequence[Verdict]) -> list[Recorded]:
            recorded = await write(verdicts)
            asyncio.get_running_loop().call_soon(lambda: lines_when_woken.append(len(logs)))
            return recorded

        ledger.runs.record = waking  # type: ignore[method-assign]  # the database's wake-up is a task of its own
        with capture_logs() as logs:
            await Record(ledger.runs)([done(task)])
        assert (lines_when_woken, len(logs)) == ([0], 1)

    async def test_what_the_database_refuses_as_data_ends_the_task(self) -> None:
        ledger = MemoryLedger(ManualClock())
        before, task, after = [await claimed(ledger, uuid4()) for _ in range(3)]
        with pytest.raises(Refused):
            await ledger.runs.record([done(task, "a\0b")])
        recorded = await Record(ledger.runs)([done(before), done(task, "a\0b"), done(after)])
        completed = Recorded(Status.COMPLETED)
        assert recorded == [completed, Recorded(Status.FAILED), completed]
        shown = await ledger.tasks.get(CALLER, task.task_id)
        assert shown is not None
        assert shown.reason == Reason.RESULT_UNSTORABLE

    @pytest.mark.parametrize(
        "failure",
        [
            OutcomeUnknown("lost"),
            Unavailable("away"),
            LockTimeout("locked"),
            SchemaMismatch("column does not exist"),
            StorageError("permission denied for table tasks"),
            Closed("the writer was cancelled"),
        ],
    )
    async def test_a_verdict_is_not_given_up_while_the_database_may_yet_take_it(
        self, failure: StorageError
    ) -> None:
        ledger = Faulty(failure)
        ledger.go.set()
        task = await claimed(ledger, uuid4())
        assert await Record(ledger.runs)([done(task)]) == [Recorded(Status.COMPLETED)]

    async def test_a_verdict_that_is_refused_whatever_it_says_is_told_and_not_tried_for_ever(self) -> None:
        class Refusing(MemoryLedger):
            async def record(self, verdicts: Sequence[Verdict]) -> list[Recorded]:
                raise Refused(f"never: {verdicts}")

        ledger = Refusing(ManualClock())
        ledger.runs.record = ledger.record  # type: ignore[method-assign]  # the fault
        with capture_logs() as logs:
            verdicts: list[Verdict] = [done(await claimed(ledger, uuid4())) for _ in range(2)]
            assert await Record(ledger.runs)(verdicts) == [Recorded(None), Recorded(None)]
        assert [entry["event"] for entry in logs] == ["verdict refused whatever it says"] * 2

    async def test_no_statement_carries_more_than_it_may_but_for_one_verdict_alone(self) -> None:
        ledger, sizes = MemoryLedger(ManualClock()), list[int]()
        record = ledger.runs.record

        async def counted(verdicts: Sequence[Verdict]) -> list[Recorded]:
            sizes.append(len(verdicts))
            return await record(verdicts)

        ledger.runs.record = counted  # type: ignore[method-assign]  # to look on
        results = [f'"{"x" * size}"' for size in (50, 40, 30, 200, 1)]
        verdicts: list[Verdict] = [Done(await claimed(ledger, uuid4()), result) for result in results]
        assert await Record(ledger.runs, most_bytes=100)(verdicts) == [Recorded(Status.COMPLETED)] * 5
        assert sizes == [2, 1, 1, 1]


class Started:
    """One run that a test ends."""

    def __init__(self, task: Run, ended: Callable[[Outcome], None]) -> None:
        self.task, self._ended = task, ended

    def end(self) -> None:
        self._ended(Done(self.task))

    def cancel(self) -> None:
        self._ended(Interrupted(self.task))


class Starter:
    """Starts runs that a test ends."""

    def __init__(self) -> None:
        self.started: dict[Run, Started] = {}

    def start(self, task: Run, ended: Callable[[Outcome], None]) -> Started:
        self.started[task] = Started(task, ended)
        return self.started[task]


class Book(Stage["list[Verdict]", "list[Recorded]"]):
    """Records while `open` is set, and fails once for every verdict in `lost`."""

    def __init__(self, *lost: Run) -> None:
        self._lost = lost
        self.open = asyncio.Event()
        self.open.set()
        self.groups: list[list[Verdict]] = []

    async def __call__(self, verdicts: list[Verdict]) -> list[Recorded]:
        self.groups.append(verdicts)
        await self.open.wait()
        if any(verdict.run in self._lost for verdict in verdicts):
            raise StorageError("permission denied")
        return [Recorded(Status.COMPLETED)] * len(verdicts)


JUDGE = RouteRetry() | DeadLetter()


def reserved(*tasks: Run, slots: int | None = None) -> Slots:
    """A slot for each, or fewer, of those that were claimed ahead."""
    book = Slots(len(tasks) if slots is None else slots)
    for task in tasks:
        book.reserve(task.reference)
    return book


class TestEach:
    async def test_a_slow_run_does_not_delay_its_neighbour_and_both_free_their_slots(self) -> None:
        slow, quick = run(), run()
        slots, starter, book = reserved(slow, quick), Starter(), Book()
        stage = Each(starter, JUDGE, book, slots, on_duty(ManualClock()))
        await stage([slow, quick])
        starter.started[quick].end()
        await eventually(lambda: slots.held == {slow.reference})
        starter.started[slow].end()
        await stage.drain(5.0)
        assert (book.groups, slots.free) == ([[Done(quick)], [Done(slow)]], 2)

    async def test_what_ends_while_verdicts_are_recorded_is_recorded_together(self) -> None:
        tasks = [run() for _ in range(MOST_VERDICTS + 3)]
        slots, starter, book = reserved(*tasks), Starter(), Book()
        book.open.clear()
        stage = Each(starter, JUDGE, book, slots, on_duty(ManualClock()))
        await stage(tasks)
        starter.started[tasks[0]].end()
        await eventually(lambda: book.groups)
        for task in tasks[1:]:
            starter.started[task].end()
        book.open.set()
        await stage.drain(5.0)
        assert [len(group) for group in book.groups] == [1, MOST_VERDICTS, 2]
        assert slots.free == len(tasks)

    async def test_runs_that_lose_their_way_free_their_slots_and_spare_later_ones(self) -> None:
        lost, fine = run(), run()
        slots, starter, book = reserved(lost, fine), Starter(), Book(lost)
        stage = Each(starter, JUDGE, book, slots, on_duty(ManualClock()))
        with capture_logs() as logs:
            await stage([lost, fine])
            starter.started[lost].end()
            await eventually(lambda: slots.held == {fine.reference})
            starter.started[fine].end()
            await stage.drain(5.0)
        assert (len(book.groups), slots.free) == (2, 2)
        assert [(entry["event"], entry["tasks"]) for entry in logs] == [
            ("runs lost their way", [str(lost.task_id)])
        ]

    async def test_a_run_that_cannot_be_started_frees_its_slot_and_spares_its_neighbour(self) -> None:
        lost, fine = run(kind="nobody.knows"), run()

        class Picky(Starter):
            def start(self, task: Run, ended: Callable[[Outcome], None]) -> Started:
                if task is lost:
                    raise KeyError(task.kind)
                return super().start(task, ended)

        slots, starter, book = reserved(lost, fine), Picky(), Book()
        stage = Each(starter, JUDGE, book, slots, on_duty(ManualClock()))
        with capture_logs() as logs:
            await stage([lost, fine])
        assert slots.held == {fine.reference}
        assert [entry["event"] for entry in logs] == ["run not started"]
        starter.started[fine].end()
        await stage.drain(5.0)
        assert (book.groups, slots.free) == ([[Done(fine)]], 2)

    async def test_what_outlasts_the_grace_is_interrupted(self) -> None:
        task = run()
        slots, book = reserved(task), Book()
        stage = Each(Starter(), JUDGE, book, slots, on_duty(ManualClock()))
        await stage([task])
        await stage.drain(0.0)
        assert (book.groups, slots.free) == ([[Interrupted(task)]], 1)

    async def test_what_was_claimed_ahead_starts_when_a_slot_comes_free_the_urgent_first(self) -> None:
        first, second, urgent = run(), run(), run(priority=Priority.HIGH)
        slots, starter, book = reserved(first, second, urgent, slots=1), Starter(), Book()
        stage = Each(starter, JUDGE, book, slots, on_duty(ManualClock()))
        waves = asyncio.gather(stage([first, second]), stage([urgent]))
        for task in (first, urgent, second):
            await eventually(partial(starter.started.get, task))
            assert slots.vacant == 0
            slots.ended(task.reference)
            starter.started[task].end()
        await waves
        await stage.drain(5.0)
        ended = [verdict for group in book.groups for verdict in group]
        assert ended == [Done(task) for task in (first, urgent, second)]
        assert (slots.vacant, slots.held) == (1, frozenset())

    async def test_it_is_given_back_when_no_slot_comes_free_in_time(self) -> None:
        slow, ahead = run(), run()
        slots, starter, book = await busy(1, ends=1000), Starter(), Book()
        for task in (slow, ahead):
            slots.reserve(task.reference)
        stage = Each(starter, JUDGE, book, slots, on_duty(ManualClock()), ahead_seconds=0.0)
        await stage([slow, ahead])
        await eventually(lambda: slots.held == {slow.reference})
        assert (list(starter.started), book.groups, slots.free) == ([slow], [[Interrupted(ahead)]], 0)
        slots.ended(slow.reference)
        starter.started[slow].end()
        await stage.drain(5.0)
        assert book.groups[1:] == [[Done(slow)]]

    async def test_so_it_is_when_the_database_has_long_not_heard_from_this_worker(self) -> None:
        first, ahead = run(), run()
        slots, starter, book, duty = (
            reserved(first, ahead, slots=1),
            Starter(),
            Book(),
            on_duty(ManualClock()),
        )
        stage = Each(starter, JUDGE, book, slots, duty, ahead_seconds=0.1)
        wave = asyncio.create_task(stage([first, ahead]))
        await eventually(lambda: starter.started)
        duty.heard(-duty.lease_seconds / 2)
        slots.ended(first.reference)
        starter.started[first].end()
        await wave
        await eventually(lambda: len(book.groups) == 2)
        assert (list(starter.started), book.groups[1]) == ([first], [Interrupted(ahead)])

    async def test_a_new_life_does_not_start_what_the_old_one_claimed(self) -> None:
        first, ahead = run(), run()
        slots, starter, book, duty = (
            reserved(first, ahead, slots=1),
            Starter(),
            Book(),
            on_duty(ManualClock()),
        )
        stage = Each(starter, JUDGE, book, slots, duty)
        wave = asyncio.create_task(stage([first, ahead]))
        await eventually(lambda: starter.started)
        duty.declared_dead()
        duty.heard(0.0)
        slots.ended(first.reference)
        starter.started[first].end()
        await asyncio.wait_for(wave, timeout=0.5)
        await stage.drain(5.0)
        ended = [verdict for group in book.groups for verdict in group]
        assert (list(starter.started), ended) == ([first], [Done(first), Interrupted(ahead)])

    async def test_a_drain_gives_back_what_waits_for_a_slot(self) -> None:
        slow, ahead, other = run(), run(), run()
        slots, book = reserved(slow, ahead, other, slots=1), Book()
        stage = Each(Starter(), JUDGE, book, slots, on_duty(ManualClock()))
        first, second = asyncio.create_task(stage([slow, ahead])), asyncio.create_task(stage([other]))
        await eventually(lambda: not slots.vacant)
        first.cancel()
        await eventually(lambda: slots.held == {slow.reference, other.reference})
        assert book.groups == [[Interrupted(ahead)]]
        second.cancel()
        await stage.drain(0.0)
        ended = [verdict for group in book.groups[1:] for verdict in group]
        assert (set(ended), slots.held) == ({Interrupted(slow), Interrupted(other)}, frozenset())

    async def test_a_database_that_does_not_come_back_keeps_no_process_from_ending(
        self,
    ) -> None:
        task = run()
        slots, book = reserved(task), Book()
        book.open.clear()
        stage = Each(Starter(), JUDGE, book, slots, on_duty(ManualClock()), flush_seconds=0.0)
        await stage([task])
        await stage.drain(0.0)
        assert (book.groups, slots.free) == ([[Interrupted(task)]], 1)

    @pytest.mark.parametrize("why", list(Stop))
    async def test_a_verdict_under_way_is_not_torn_off_by_a_stop(self, why: Stop) -> None:
        @handler("echo")
        async def echo(payload: Any) -> Any:
            return payload

        ledger, handlers = Faulty(), Handlers([echo])
        task = await claimed(ledger, uuid4())
        slots = reserved(task)
        async with Runners(1, handlers) as runners:
            stage = Each(
                Execute(handlers, runners, slots), JUDGE, Record(ledger.runs), slots, on_duty(ManualClock())
            )
            await stage([task])
            await ledger.asked.wait()
            slots.stop(task.reference, why)
            draining = asyncio.create_task(stage.drain(0.0))
            await ManualClock().advance(0)
            assert (draining.done(), task.reference in slots) == (False, True)
            ledger.go.set()
            await draining
        shown = await ledger.tasks.get(CALLER, task.task_id)
        assert shown is not None
        assert (shown.status, slots.free) == (Status.COMPLETED, 1)
