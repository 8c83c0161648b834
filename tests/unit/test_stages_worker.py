"""The worker's stages, from the reference to the verdict."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from pipeline.broker import Message
from pipeline.broker.topology import DLQ
from pipeline.duty import Duty
from pipeline.flow import Parcel, Stage
from pipeline.handlers import Context, Permanent, RetryLater, handler
from pipeline.handlers.errors import ChildKilled, NotStarted
from pipeline.handlers.registry import Handlers
from pipeline.handlers.runners import Runners
from pipeline.references import encode
from pipeline.slots import Slots, Stop
from pipeline.stages import (
    Beat,
    Claim,
    Consume,
    DeadLetter,
    Execute,
    Failed,
    HandOver,
    Record,
    RouteRetry,
    Wave,
    each,
)
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import OutcomeUnknown, Refused
from storage.model import (
    Caller,
    Cancelled,
    Dead,
    Done,
    Interrupted,
    Priority,
    Reason,
    Recorded,
    Reference,
    Retry,
    Run,
    Status,
)
from tests.support.builders import done, failure, run, submission
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

CALLER = Caller()


async def sent(ledger: MemoryLedger, count: int = 1, **fields: Any) -> list[Reference]:
    """Submit tasks and let the outbox go, as a relay does once the broker holds them."""
    await ledger.submissions.submit([submission(**fields) for _ in range(count)])
    rows = await ledger.outbox.poll(1000, 30)
    await ledger.outbox.settle([(row.id, 0.0) for row in rows])
    return [row.reference for row in rows]


def wave_of(references: Sequence[Reference]) -> tuple[Wave, list[BaseException | None]]:
    settled: list[BaseException | None] = []

    async def settle(failed: BaseException | None) -> None:
        settled.append(failed)

    return Wave(list(references), Parcel(list(references), settle)), settled


class TestConsume:
    async def test_queues_that_have_work_share_the_slots_6_to_3_to_1(self) -> None:
        queues = ["tasks.high", "tasks.medium", "tasks.low"]
        sent_to = {queue: [run().reference for _ in range(100)] for queue in queues}
        ledger, slots = MemoryLedger(ManualClock()), Slots(100)
        async with MemoryBroker() as broker, Consume(broker, queues, slots, ledger.runs) as consume:
            for queue, references in sent_to.items():
                await broker.publish([Message(queue, encode(references))])
            await eventually(lambda: consume.unclaimed == 300)
            parcel = await consume.pull()
            assert parcel is not None
            taken = set(parcel.body.references)
            assert [len(taken & set(sent_to[queue])) for queue in queues] == [60, 30, 10]

    async def test_a_message_is_acked_when_its_last_reference_has_passed_on(self) -> None:
        ledger, slots, references = MemoryLedger(ManualClock()), Slots(1), [run().reference for _ in range(2)]
        async with MemoryBroker() as broker:
            async with Consume(broker, ["tasks.high"], slots, ledger.runs) as consume:
                await broker.publish([Message("tasks.high", encode(references))])
                first = await consume.pull()
                assert first is not None
                await first.settle(None)
                slots.release(references[0])
                second = await consume.pull()
                assert second is not None
                assert second.body.references == references[1:]
                await second.settle(None)
                await consume.quiesce()
            depth = await broker.depth("tasks.high")
            assert depth is not None
            assert depth.ready == 0

    async def test_on_drain_a_message_not_wholly_pulled_returns_to_its_queue(self) -> None:
        ledger, slots, references = MemoryLedger(ManualClock()), Slots(1), [run().reference for _ in range(2)]
        async with MemoryBroker() as broker:
            async with Consume(broker, ["tasks.high"], slots, ledger.runs) as consume:
                await broker.publish([Message("tasks.high", encode(references))])
                first = await consume.pull()
                assert first is not None
                await first.settle(None)
                await consume.quiesce()
                assert await consume.pull() is None
            depth = await broker.depth("tasks.high")
            assert depth is not None
            assert depth.ready == 1

    async def test_a_duplicate_of_what_is_held_costs_no_slot(self) -> None:
        ledger, slots = MemoryLedger(ManualClock()), Slots(2)
        held, fresh = run().reference, run().reference
        slots.reserve(held)
        async with MemoryBroker() as broker, Consume(broker, ["tasks.low"], slots, ledger.runs) as consume:
            await broker.publish(
                [Message("tasks.low", encode([held])), Message("tasks.low", encode([fresh]))]
            )
            parcel = await consume.pull()
            assert parcel is not None
            assert parcel.body.references == [fresh]

    async def test_what_finds_no_slot_in_time_goes_back_through_the_database(self) -> None:
        clock = ManualClock()
        ledger, slots = MemoryLedger(clock), Slots(1)
        [reference] = await sent(ledger, priority=Priority.LOW)
        slots.reserve(run().reference)
        async with (
            MemoryBroker() as broker,
            Consume(broker, ["tasks.low"], slots, ledger.runs, clock=clock) as consume,
        ):
            await broker.publish([Message("tasks.low", encode([reference]))])
            pulling = asyncio.create_task(consume.pull())
            await eventually(lambda: consume.unclaimed == 1)
            await clock.advance(5.1)
            slots.released.set()
            await eventually(lambda: consume.unclaimed == 0)
            await clock.advance(5.1)
            assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [reference]
            await consume.quiesce()
            assert await pulling is None

    async def test_what_nobody_can_read_moves_to_the_dlq(self) -> None:
        ledger = MemoryLedger(ManualClock())
        async with MemoryBroker() as broker, Consume(broker, ["tasks.low"], Slots(1), ledger.runs):
            await broker.publish([Message("tasks.low", b"\xff")])

            async def moved() -> bool:
                depth = await broker.depth(DLQ)
                return depth is not None and depth.ready == 1

            await eventually(moved)


class Doubtful(MemoryLedger):
    """Loses the reply of the first claim."""

    def __init__(self) -> None:
        super().__init__(ManualClock())
        self.claims = 0
        self._claim = self.runs.claim
        self.runs.claim = self.claim  # type: ignore[method-assign]  # the one reply that is lost

    async def claim(self, references: Sequence[Reference], worker_id: Any, kinds: Sequence[str]) -> list[Run]:
        self.claims += 1
        runs = await self._claim(references, worker_id, kinds)
        if self.claims == 1:
            raise OutcomeUnknown("the reply was lost")
        return runs


class TestClaim:
    async def test_a_lost_reply_is_asked_for_again(self) -> None:
        ledger, slots, duty = Doubtful(), Slots(4), Duty(ManualClock(), 30)
        duty.heard(0.0)
        references = await sent(ledger, 2)
        wave, settled = wave_of(references)
        claimed = await Claim(ledger.runs, slots, duty, ["echo"])(wave)
        assert ({task.reference for task in claimed.runs}, ledger.claims) == (set(references), 2)
        assert settled == []
        assert await HandOver()(claimed) == claimed.runs
        assert settled == [None]

    async def test_a_refused_reference_frees_its_slot(self) -> None:
        ledger, slots, duty = MemoryLedger(ManualClock()), Slots(4), Duty(ManualClock(), 30)
        duty.heard(0.0)
        [waiting] = await sent(ledger)
        stale = Reference(waiting.task_id, 7)
        for reference in (waiting, stale):
            slots.reserve(reference)
        await Claim(ledger.runs, slots, duty, ["echo"])(wave_of([waiting, stale])[0])
        assert slots.held == {waiting}

    async def test_nothing_is_claimed_before_the_database_has_heard_from_the_worker(self) -> None:
        ledger, duty = MemoryLedger(ManualClock()), Duty(ManualClock(), 30)
        references = await sent(ledger)
        claiming = asyncio.create_task(Claim(ledger.runs, Slots(1), duty, ["echo"])(wave_of(references)[0]))
        await asyncio.sleep(0)
        assert not claiming.done()
        duty.heard(0.0)
        assert len((await claiming).runs) == 1

    async def test_a_worker_declared_dead_meanwhile_starts_nothing(self) -> None:
        ledger, slots, duty = MemoryLedger(ManualClock()), Slots(1), Duty(ManualClock(), 30)
        duty.heard(0.0)
        [reference] = await sent(ledger)
        slots.reserve(reference)
        original = ledger.runs.claim

        async def claim(references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str]) -> list[Run]:
            duty.declared_dead()
            return await original(references, worker_id, kinds)

        ledger.runs.claim = claim  # type: ignore[method-assign]  # what happens between question and answer
        claimed = await Claim(ledger.runs, slots, duty, ["echo"])(wave_of([reference])[0])
        assert (claimed.runs, slots.free) == ([], 1)


@handler("test.return")
async def returns(payload: Any) -> Any:
    return payload


@handler("test.raise")
async def raises(_payload: Any) -> None:
    raise ValueError("as asked")


@handler("test.permanent")
async def permanent(_payload: Any) -> None:
    raise Permanent("never")


@handler("test.later")
async def later(_payload: Any) -> None:
    raise RetryLater(7.5)


@handler("test.wait")
async def waits(_payload: Any, _ctx: Context) -> None:
    await asyncio.Event().wait()


@handler("test.finish")
async def finishes_although_cancelled(_payload: Any) -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "finished"
    return "never"


@handler("test.killed")
async def killed(_payload: Any) -> None:
    raise ChildKilled(-9)


@handler("test.not_started")
async def not_started(_payload: Any) -> None:
    raise NotStarted("no process to be had")


HANDLERS = Handlers(
    [returns, raises, permanent, later, waits, finishes_although_cancelled, killed, not_started]
)


async def execute(task: Run, slots: Slots | None = None) -> object:
    async with Runners(1, HANDLERS) as runners:
        return await Execute(HANDLERS, runners, slots or Slots(1))(task)


class TestExecute:
    async def test_what_the_handler_returns_is_the_result(self) -> None:
        task = run(kind="test.return", payload=b'{"a":[1]}')
        assert await execute(task) == Done(task, '{"a":[1]}')

    @pytest.mark.parametrize(
        ("kind", "retryable", "delay_seconds", "reason"),
        [
            ("test.raise", True, None, Reason.ERROR),
            ("test.permanent", False, None, Reason.ERROR),
            ("test.later", True, 7.5, Reason.ERROR),
            ("test.killed", False, None, Reason.KILLS_WORKER),
            ("test.not_started", True, 5.0, Reason.ERROR),
        ],
    )
    async def test_what_it_raises_is_a_value(
        self, kind: str, *, retryable: bool, delay_seconds: float | None, reason: Reason
    ) -> None:
        outcome = await execute(run(kind=kind))
        assert isinstance(outcome, Failed)
        assert (outcome.retryable, outcome.delay_seconds) == (retryable, delay_seconds)
        assert outcome.failure.reason is reason

    async def test_a_timeout_is_a_failure(self) -> None:
        outcome = await execute(run(kind="test.wait", timeout_seconds=0.01))
        assert isinstance(outcome, Failed)
        assert (outcome.failure.reason, outcome.retryable) == (Reason.TIMEOUT, True)

    @pytest.mark.parametrize(
        ("why", "kind", "verdict"),
        [
            (Stop.CANCELLED, "test.wait", Cancelled),
            (Stop.INTERRUPTED, "test.wait", Interrupted),
            (Stop.LOST, "test.wait", Interrupted),
            (Stop.CANCELLED, "test.finish", Done),
        ],
    )
    async def test_a_run_that_is_stopped_says_why_unless_it_got_done(
        self, why: Stop, kind: str, verdict: type
    ) -> None:
        slots, task = Slots(1), run(kind=kind)
        slots.reserve(task.reference)
        executing = asyncio.create_task(execute(task, slots))
        slots.start(task, executing)  # type: ignore[arg-type]  # a task is a task
        await asyncio.sleep(0.01)
        slots.stop(task.reference, why)
        assert isinstance(await executing, verdict)


@pytest.mark.parametrize(
    ("attempt", "max_retries", "asked_seconds", "postponements", "expected"),
    [
        (1, 3, None, 0, ("tasks.medium.retry.5s", 5.0, False, True)),
        (2, 3, None, 0, ("tasks.medium.retry.30s", 30.0, False, True)),
        (3, 3, None, 0, ("tasks.medium.retry.30s", 30.0, False, True)),
        (4, 3, None, 0, None),
        (1, 0, None, 0, None),
        (1, 0, 7.5, 0, ("tasks.medium", 7.5, True, False)),
        (1, 0, 5.0, 0, ("tasks.medium.retry.5s", 5.0, False, False)),
        (1, 1, 7.5, 20, ("tasks.medium", 7.5, True, True)),
        (1, 0, 7.5, 20, None),
    ],
)
async def test_route_retry(
    attempt: int,
    max_retries: int,
    asked_seconds: float | None,
    postponements: int,
    expected: tuple[str, float, bool, bool] | None,
) -> None:
    task = run(attempt=attempt, max_retries=max_retries, postponements=postponements)
    failed = Failed(task, failure(), delay_seconds=asked_seconds)
    verdict = await (RouteRetry((5, 30)) | DeadLetter())(failed)
    if expected is None:
        assert verdict == Dead(task, failed.failure)
    else:
        assert verdict == Retry(task, failed.failure, *expected)


async def test_a_failure_that_is_final_is_not_routed() -> None:
    failed = Failed(run(), failure(), retryable=False)
    assert await RouteRetry()(failed) is failed


class TestRecord:
    async def test_a_verdict_is_recorded_once(self) -> None:
        ledger = MemoryLedger(ManualClock())
        [task] = await ledger.runs.claim(await sent(ledger), uuid4(), ["echo"])
        record = Record(ledger.runs)
        assert await record(done(task)) == Recorded(Status.COMPLETED)
        assert await record(done(task)) == Recorded(None)

    async def test_what_the_database_refuses_as_data_ends_the_task(self) -> None:
        ledger = MemoryLedger(ManualClock())
        [task] = await ledger.runs.claim(await sent(ledger), uuid4(), ["echo"])
        with pytest.raises(Refused):
            await ledger.runs.record([done(task, "a\0b")])
        assert await Record(ledger.runs)(done(task, "a\0b")) == Recorded(Status.FAILED)
        shown = await ledger.tasks.get(CALLER, task.task_id)
        assert shown is not None
        assert shown.reason == Reason.RESULT_UNSTORABLE


class TestEach:
    async def test_a_slow_run_does_not_delay_its_neighbour_and_both_free_their_slots(self) -> None:
        slots, slow, quick, go = Slots(2), run(), run(), asyncio.Event()
        recorded: list[Run] = []

        class Carry(Stage[Run, Recorded]):
            async def __call__(self, task: Run) -> Recorded:
                if task is slow:
                    await go.wait()
                recorded.append(task)
                return Recorded(Status.COMPLETED)

        for task in (slow, quick):
            slots.reserve(task.reference)
        stage = each(Carry(), slots)
        await stage([slow, quick])
        await eventually(lambda: slots.held == {slow.reference})
        assert recorded == [quick]
        go.set()
        await stage.drain(5.0)
        assert (recorded, slots.free) == ([quick, slow], 2)

    async def test_what_outlasts_the_grace_is_interrupted(self) -> None:
        slots, task = Slots(1), run()
        reasons: list[Stop | None] = []

        class Carry(Stage[Run, Recorded]):
            async def __call__(self, task: Run) -> Recorded:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    reasons.append(slots.why(task.reference))
                return Recorded(Status.PENDING)

        slots.reserve(task.reference)
        stage = each(Carry(), slots)
        await stage([task])
        await asyncio.sleep(0)
        await stage.drain(0.0)
        assert (reasons, slots.free) == ([Stop.INTERRUPTED], 1)

    async def test_a_run_cancelled_before_its_first_step_frees_its_slot(self) -> None:
        slots, task = Slots(1), run()

        class Carry(Stage[Run, Recorded]):
            async def __call__(self, task: Run) -> Recorded:
                raise AssertionError(task)

        slots.reserve(task.reference)
        await each(Carry(), slots)([task])
        slots.stop(task.reference, Stop.CANCELLED)
        await eventually(lambda: slots.free == 1)


class TestBeat:
    async def test_it_registers_the_worker_and_lets_it_start(self) -> None:
        clock = ManualClock()
        ledger, duty = MemoryLedger(clock), Duty(clock, 30)
        await Beat(ledger.workers, ledger.runs, Slots(4), duty, ["tasks.high"])(None)
        assert duty.fresh
        capacity = await ledger.outbox.capacity()
        assert (capacity[Priority.HIGH].workers, capacity[Priority.HIGH].free) == (1, 4)

    async def test_a_cancellation_that_was_asked_reaches_the_run(self) -> None:
        clock = ManualClock()
        ledger, duty, slots = MemoryLedger(clock), Duty(clock, 30), Slots(1)
        beat = Beat(ledger.workers, ledger.runs, slots, duty, ["tasks.medium"])
        await beat(None)
        [task] = await ledger.runs.claim(await sent(ledger), duty.worker_id, ["echo"])
        slots.reserve(task.reference)
        running = asyncio.create_task(asyncio.sleep(3600))
        slots.start(task, running)
        await ledger.tasks.cancel(CALLER, task.task_id)
        await beat(None)
        assert slots.why(task.reference) is Stop.CANCELLED

    async def test_what_only_the_database_holds_is_dispatched_again_at_the_second_beat(self) -> None:
        clock = ManualClock()
        ledger, duty = MemoryLedger(clock), Duty(clock, 30)
        beat = Beat(ledger.workers, ledger.runs, Slots(1), duty, ["tasks.medium"])
        await beat(None)
        [task] = await ledger.runs.claim(await sent(ledger), duty.worker_id, ["echo"])
        await beat(None)
        assert await ledger.outbox.poll(10, 30) == []
        await beat(None)
        assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [Reference(task.task_id, 2)]

    async def test_what_the_database_does_not_give_it_is_stopped_at_the_second_beat(self) -> None:
        clock = ManualClock()
        ledger, duty, slots, task = MemoryLedger(clock), Duty(clock, 30), Slots(1), run()
        beat = Beat(ledger.workers, ledger.runs, slots, duty, ["tasks.medium"])
        slots.reserve(task.reference)
        running = asyncio.create_task(asyncio.sleep(3600))
        slots.start(task, running)
        await beat(None)
        assert slots.why(task.reference) is None
        await beat(None)
        assert slots.why(task.reference) is Stop.LOST

    async def test_a_worker_declared_dead_stops_all_and_begins_anew(self) -> None:
        clock = ManualClock()
        ledger, duty, slots, task = MemoryLedger(clock), Duty(clock, 30), Slots(1), run()
        beat = Beat(ledger.workers, ledger.runs, slots, duty, ["tasks.medium"])
        await beat(None)
        first = duty.worker_id
        slots.reserve(task.reference)
        running = asyncio.create_task(asyncio.sleep(3600))
        slots.start(task, running)
        await clock.advance(31)
        assert await ledger.workers.declare_dead(30) == [first]
        await beat(None)
        assert (slots.why(task.reference), duty.fresh, duty.worker_id == first) == (Stop.LOST, False, False)
