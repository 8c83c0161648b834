"""The janitor: what was lost comes back, what is over goes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from pipeline.broker import BrokerUnavailable, Message
from pipeline.stages import Every, Prune, Rescue, Resend
from pipeline.stages.prune import MOST_STEPS
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import Unavailable
from storage.model import Caller, Priority, Recorded, Reference, Status
from tests.support.builders import beat, done, submission, task_id
from tests.support.stages import SilentBroker, claimed, sent

if TYPE_CHECKING:
    from pipeline.ports import Upkeep
    from storage.model import Disconnected, Rescued

CALLER = Caller()
LEASE_SECONDS = 30.0
ROUND_SECONDS = 1.5


async def go_on(rescue: Rescue, clock: ManualClock, seconds: float) -> None:
    """Let a janitor work for that long, round after round; the last one is when the time is over."""
    until = clock.now() + seconds
    while (rest_seconds := until - clock.now()) > 0:
        await clock.advance(min(ROUND_SECONDS, rest_seconds))
        await rescue(None)


class TestRescue:
    async def test_the_runs_of_a_silent_worker_are_dispatched_again(self) -> None:
        clock, worker_id = ManualClock(), uuid4()
        ledger = MemoryLedger(clock)
        rescue = Rescue(ledger.upkeep, ledger.workers, LEASE_SECONDS, clock)
        await ledger.workers.beat(beat(worker_id))
        task = await claimed(ledger, worker_id)
        await go_on(rescue, clock, LEASE_SECONDS - 1)
        assert await ledger.outbox.poll(10, 30) == []
        with capture_logs() as logs:
            await go_on(rescue, clock, 2)
        [row] = await ledger.outbox.poll(10, 30)
        assert row.reference == Reference(task.task_id, 2)
        told = {"event": "rescued", "task_id": str(task.task_id), "dispatch": 1, "status": "PENDING"}
        assert [entry for entry in logs if entry["event"] == "rescued"] == [{**told, "log_level": "warning"}]

    async def test_nobody_is_declared_dead_within_a_lease_of_the_start(self) -> None:
        clock, worker_id = ManualClock(), uuid4()
        ledger = MemoryLedger(clock)
        await ledger.workers.beat(beat(worker_id))
        await clock.advance(LEASE_SECONDS + 1)
        await Rescue(ledger.upkeep, ledger.workers, LEASE_SECONDS, clock)(None)
        assert await ledger.workers.beat(beat(worker_id))

    @pytest.mark.parametrize("fault", ["failed", "stood still"])
    async def test_after_a_database_that_stood_still_nobody_is_declared_dead_for_a_lease(
        self, fault: str
    ) -> None:
        clock, worker_id = ManualClock(), uuid4()
        ledger = MemoryLedger(clock)
        rescue = Rescue(ledger.upkeep, ledger.workers, LEASE_SECONDS, clock)
        await clock.advance(LEASE_SECONDS)
        await ledger.workers.beat(beat(worker_id))
        await clock.advance(5)
        original = ledger.upkeep.rescue

        async def faulty(most: int, lease_seconds: float, *, hung: bool = True) -> list[Rescued]:
            if fault == "failed":
                raise Unavailable("away")
            await clock.advance(LEASE_SECONDS / 2 + 1)
            return await original(most, lease_seconds, hung=hung)

        ledger.upkeep.rescue = faulty  # type: ignore[method-assign]  # the fault
        try:
            await rescue(None)
        except Unavailable:
            assert fault == "failed"
        ledger.upkeep.rescue = original  # type: ignore[method-assign]  # it heals
        await clock.advance(LEASE_SECONDS - 1)
        await rescue(None)
        assert await ledger.workers.beat(beat(worker_id))

    async def test_after_an_outage_a_run_has_a_lease_to_bring_its_verdict(self) -> None:
        """It may have ended in time, and been heard by nobody."""
        clock, worker_id = ManualClock(), uuid4()
        ledger = MemoryLedger(clock)
        rescue = Rescue(ledger.upkeep, ledger.workers, LEASE_SECONDS, clock)
        run = await claimed(ledger, worker_id)
        await clock.advance(run.timeout_seconds + 2 * LEASE_SECONDS + 1)
        await ledger.workers.beat(beat(worker_id))
        await rescue(None)
        assert await ledger.runs.record([done(run)]) == [Recorded(Status.COMPLETED)]

        late = await claimed(ledger, worker_id)
        for _ in range(2):
            await go_on(rescue, clock, (late.timeout_seconds + 2 * LEASE_SECONDS) / 2)
            await ledger.workers.beat(beat(worker_id))
        await go_on(rescue, clock, ROUND_SECONDS)
        assert await ledger.runs.record([done(late)]) == [Recorded(None)]

    async def test_a_janitor_that_stood_still_itself_declares_nobody_dead_for_a_lease(self) -> None:
        """Whatever stopped it, a host that slept, say, may have stopped the workers as well."""
        clock, worker_id = ManualClock(), uuid4()
        ledger = MemoryLedger(clock)
        rescue = Rescue(ledger.upkeep, ledger.workers, LEASE_SECONDS, clock)
        await go_on(rescue, clock, LEASE_SECONDS)
        await ledger.workers.beat(beat(worker_id))
        await clock.advance(LEASE_SECONDS + 1)
        await rescue(None)
        assert await ledger.workers.beat(beat(worker_id))
        await go_on(rescue, clock, LEASE_SECONDS + ROUND_SECONDS)
        assert not await ledger.workers.beat(beat(worker_id))


class TestRescueOfTheDisconnected:
    """The process of a worker has ended, or so it looks."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def ledger(self, clock: ManualClock) -> MemoryLedger:
        return MemoryLedger(clock)

    @pytest.fixture
    def rescue(self, ledger: MemoryLedger, clock: ManualClock) -> Rescue:
        return Rescue(ledger.upkeep, ledger.workers, LEASE_SECONDS, clock)

    async def test_its_runs_are_dispatched_again_long_before_the_lease_is_over(
        self, rescue: Rescue, ledger: MemoryLedger, clock: ManualClock
    ) -> None:
        worker_id, other = uuid4(), uuid4()
        for each in (worker_id, other):
            await ledger.workers.beat(beat(each))
        task = await claimed(ledger, worker_id)
        ledger.disconnect(worker_id)
        with capture_logs() as logs:
            await go_on(rescue, clock, 4 * ROUND_SECONDS)
            assert await ledger.outbox.poll(10, 30) == []
            await go_on(rescue, clock, ROUND_SECONDS)
        assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [Reference(task.task_id, 2)]
        told = {"event": "worker declared dead", "worker_id": str(worker_id), "why": "disconnected"}
        assert [entry for entry in logs if "declared" in entry["event"]] == [{**told, "log_level": "warning"}]

    async def test_a_worker_that_beats_in_between_is_not_declared_dead(
        self, rescue: Rescue, ledger: MemoryLedger, clock: ManualClock
    ) -> None:
        worker_id = uuid4()
        for _ in range(3):
            assert await ledger.workers.beat(beat(worker_id))
            ledger.disconnect(worker_id)
            await go_on(rescue, clock, 4 * ROUND_SECONDS)
        assert await ledger.workers.beat(beat(worker_id))

    @pytest.mark.parametrize("fault", ["failed", "stood still", "came late"])
    async def test_what_was_seen_before_a_fault_does_not_count(
        self, rescue: Rescue, ledger: MemoryLedger, clock: ManualClock, fault: str
    ) -> None:
        worker_id = uuid4()
        await ledger.workers.beat(beat(worker_id))
        ledger.disconnect(worker_id)
        await go_on(rescue, clock, 4 * ROUND_SECONDS)
        if fault == "came late":
            await clock.advance(LEASE_SECONDS / 2 + 1)
        else:
            await self.faulty_round(rescue, ledger, clock, fault)
        await go_on(rescue, clock, 4 * ROUND_SECONDS)
        assert await ledger.workers.beat(beat(worker_id))

    async def faulty_round(
        self, rescue: Rescue, ledger: MemoryLedger, clock: ManualClock, fault: str
    ) -> None:
        original = ledger.workers.disconnected

        async def faulty() -> list[Disconnected]:
            if fault == "failed":
                raise Unavailable("away")
            await clock.advance(LEASE_SECONDS / 2 + 1)
            return await original()

        ledger.workers.disconnected = faulty  # type: ignore[method-assign]  # the fault
        with suppress(Unavailable):
            await rescue(None)
        ledger.workers.disconnected = original  # type: ignore[method-assign]  # it heals


class TestResend:
    async def test_what_a_later_message_has_overtaken_is_sent_again(self) -> None:
        clock, worker_id = ManualClock(), uuid4()
        ledger = MemoryLedger(clock)
        [lost] = await sent(ledger)
        await clock.advance(1)
        later = await claimed(ledger, worker_id)
        await ledger.workers.beat(beat(worker_id, claimed_through=(None, later.queued_at, None)))
        async with MemoryBroker() as broker:
            await broker.declare("tasks.medium")
            await broker.publish([Message("tasks.medium", b"something is in it")])
            resend = Resend(ledger.upkeep, broker)
            await resend(None)
            assert await ledger.outbox.poll(10, 30) == []
            await resend(None)
        assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [Reference(lost.task_id, 1)]

    async def test_what_a_queue_found_empty_twice_should_hold_is_sent_again(self) -> None:
        clock = ManualClock()
        ledger = MemoryLedger(clock)
        [lost] = await sent(ledger, priority=Priority.LOW)
        async with MemoryBroker() as broker:
            resend = Resend(ledger.upkeep, broker, round_seconds=10)
            await resend(None)
            await clock.advance(1)
            await resend(None)
            assert await ledger.outbox.poll(10, 30) == [], "it was queued within the round"
            await clock.advance(11)
            await resend(None)
        assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [Reference(lost.task_id, 1)]

    async def test_a_queue_that_does_not_answer_keeps_no_other_from_being_looked_at(self) -> None:
        clock = ManualClock()
        ledger = MemoryLedger(clock)
        [lost] = await sent(ledger, priority=Priority.LOW)
        await clock.advance(11)
        async with SilentBroker("tasks.high") as broker:
            resend = Resend(ledger.upkeep, broker)
            for _ in range(2):
                with pytest.raises(BrokerUnavailable):
                    await resend(None)
        assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [Reference(lost.task_id, 1)]

    async def test_what_a_worker_has_received_and_not_claimed_is_not_lost(self) -> None:
        clock = ManualClock()
        ledger = MemoryLedger(clock)
        await sent(ledger)
        await ledger.workers.beat(beat(unclaimed=1))
        await clock.advance(11)
        async with MemoryBroker() as broker:
            resend = Resend(ledger.upkeep, broker)
            for _ in range(3):
                await resend(None)
        assert await ledger.outbox.poll(10, 30) == []


async def test_prune_removes_what_is_over_and_past_its_retention() -> None:
    clock, worker_id = ManualClock(), uuid4()
    ledger = MemoryLedger(clock)
    old, waiting = submission(id=task_id(age_seconds=3600)), submission(id=task_id(age_seconds=3600))
    await ledger.submissions.submit([old, waiting])
    [task] = await ledger.runs.claim([Reference(old.id, 1)], worker_id, ["echo"])
    await ledger.runs.record([done(task)])
    await clock.advance(100)
    await Prune(ledger.upkeep, retention_seconds=50)(None)
    assert await ledger.tasks.get(CALLER, old.id) is None
    assert await ledger.tasks.get(CALLER, waiting.id) is not None


async def test_prune_goes_on_while_steps_are_full_and_no_longer_than_a_round() -> None:
    class Full:
        steps = 0

        async def prune(self, _retention: float, _ttl: float, most: int) -> int:
            self.steps += 1
            return most if self.steps % 150 else most - 1

    full = Full()
    prune = Prune(cast("Upkeep", full))
    await prune(None)
    assert full.steps == MOST_STEPS
    await prune(None)
    assert full.steps == 150


async def test_every_ticks_at_once_then_by_the_clock_until_it_is_stopped() -> None:
    clock = ManualClock()
    async with Every(10, clock) as every:
        assert await every.pull() is not None
        second = asyncio.create_task(every.pull())
        await clock.advance(8.9)
        assert not second.done()
        await clock.advance(2.2)
        assert await second is not None
        third = asyncio.create_task(every.pull())
        await asyncio.sleep(0)
        await every.quiesce()
        assert await third is None
