"""Verdicts on their way to the database, each run in its own slot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from pipeline.flow import Stage
from pipeline.handlers import handler
from pipeline.handlers.registry import Handlers
from pipeline.handlers.runners import Runners
from pipeline.slots import Slots, Stop
from pipeline.stages import DeadLetter, Execute, Record, RouteRetry, each
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
from storage.model import Caller, Done, Reason, Recorded, Status
from tests.support.builders import dead, done, run
from tests.support.stages import claimed
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        assert await record(done(task)) == Recorded(Status.COMPLETED)
        assert await record(dead(task)) == Recorded(None)

    async def test_a_dead_letter_is_a_warning_in_the_log_and_a_success_is_not(self) -> None:
        ledger = MemoryLedger(ManualClock())
        record, good, bad = (
            Record(ledger.runs),
            await claimed(ledger, uuid4()),
            await claimed(ledger, uuid4()),
        )
        with capture_logs() as logs:
            await record(done(good))
            await record(dead(bad))
        assert [(entry["event"], entry["log_level"]) for entry in logs] == [
            ("completed", "info"),
            ("failed", "warning"),
        ]

    async def test_successes_by_the_dozen_are_one_line_and_a_failure_among_them_has_its_own(self) -> None:
        ledger = MemoryLedger(ManualClock())
        record, worker_id = Record(ledger.runs), uuid4()
        verdicts: list[Verdict] = [done(await claimed(ledger, worker_id)) for _ in range(30)]
        bad = dead(await claimed(ledger, worker_id))
        verdicts.append(bad)
        with capture_logs() as logs:
            await asyncio.gather(*(record(verdict) for verdict in verdicts))
        assert [entry["event"] for entry in logs] == ["completed", "failed"]
        assert (logs[0]["tasks"], logs[0]["kinds"]) == (30, {"echo": 30})
        assert logs[1]["task_id"] == str(bad.run.task_id)

    async def test_what_the_database_refuses_as_data_ends_the_task(self) -> None:
        ledger = MemoryLedger(ManualClock())
        task, neighbour = [await claimed(ledger, uuid4()) for _ in range(2)]
        with pytest.raises(Refused):
            await ledger.runs.record([done(task, "a\0b")])
        record = Record(ledger.runs)
        recorded = await asyncio.gather(record(done(task, "a\0b")), record(done(neighbour)))
        assert list(recorded) == [Recorded(Status.FAILED), Recorded(Status.COMPLETED)]
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
        assert await Record(ledger.runs)(done(await claimed(ledger, uuid4()))) == Recorded(Status.COMPLETED)

    async def test_as_many_verdicts_wait_as_there_are_slots_however_large(self) -> None:
        ledger = Faulty()
        record, result = Record(ledger.runs), f'"{"x" * (1 << 20)}"'
        tasks = [await claimed(ledger, uuid4()) for _ in range(70)]
        recording = asyncio.gather(*(record(Done(task, result)) for task in tasks))
        await ledger.asked.wait()
        ledger.go.set()
        assert set(await recording) == {Recorded(Status.COMPLETED)}


class Held(Stage["Run", Recorded]):
    """Carries runs, some of them not before `go` is set."""

    def __init__(self, *held: Run) -> None:
        self._held = held
        self.go = asyncio.Event()
        self.carried: list[Run] = []

    async def __call__(self, task: Run) -> Recorded:
        if task in self._held:
            await self.go.wait()
        self.carried.append(task)
        return Recorded(Status.COMPLETED)


def reserved(*tasks: Run) -> Slots:
    slots = Slots(len(tasks))
    for task in tasks:
        slots.reserve(task.reference)
    return slots


class TestEach:
    async def test_a_slow_run_does_not_delay_its_neighbour_and_both_free_their_slots(self) -> None:
        slow, quick = run(), run()
        slots, steps = reserved(slow, quick), Held(slow)
        stage = each(steps, slots)
        await stage([slow, quick])
        await eventually(lambda: slots.held == {slow.reference})
        assert steps.carried == [quick]
        steps.go.set()
        await stage.drain(5.0)
        assert (steps.carried, slots.free) == ([quick, slow], 2)

    async def test_a_run_that_loses_its_way_frees_its_slot_and_spares_its_neighbour(self) -> None:
        lost, fine = run(), run()
        slots = reserved(lost, fine)
        carried: list[Run] = []

        class Lose(Stage["Run", Recorded]):
            async def __call__(self, task: Run) -> Recorded:
                if task is lost:
                    raise StorageError("permission denied")
                carried.append(task)
                return Recorded(Status.COMPLETED)

        stage = each(Lose(), slots)
        with capture_logs() as logs:
            await stage([lost, fine])
            await stage.drain(5.0)
        assert (carried, slots.free) == ([fine], 2)
        assert [(entry["event"], entry["task_id"]) for entry in logs] == [
            ("run lost its way", str(lost.task_id))
        ]

    async def test_what_outlasts_the_grace_is_interrupted(self) -> None:
        task = run()
        slots, reasons = reserved(task), []

        class Carry(Stage["Run", Recorded]):
            async def __call__(self, task: Run) -> Recorded:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    reasons.append(slots.why(task.reference))
                return Recorded(Status.PENDING)

        stage = each(Carry(), slots)
        await stage([task])
        await asyncio.sleep(0)
        await stage.drain(0.0)
        assert (reasons, slots.free) == ([Stop.INTERRUPTED], 1)

    async def test_a_run_cancelled_before_its_first_step_frees_its_slot(self) -> None:
        task = run()
        slots, steps = reserved(task), Held()
        await each(steps, slots)([task])
        slots.stop(task.reference, Stop.CANCELLED)
        await eventually(lambda: slots.free == 1)
        assert steps.carried == []

    @pytest.mark.parametrize("why", list(Stop))
    async def test_a_verdict_under_way_is_not_torn_off_by_a_stop(self, why: Stop) -> None:
        @handler("echo")
        async def echo(payload: Any) -> Any:
            return payload

        ledger, handlers = Faulty(), Handlers([echo])
        task = await claimed(ledger, uuid4())
        slots = reserved(task)
        async with Runners(1, handlers) as runners:
            verdict = Execute(handlers, runners, slots) | RouteRetry() | DeadLetter()
            stage = each(verdict | Record(ledger.runs), slots)
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
