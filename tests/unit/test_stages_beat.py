"""The heartbeat: what a worker learns from it, and what it mends."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import structlog

from pipeline.duty import Duty
from pipeline.slots import Slots, Stop
from pipeline.stages import Beat
from pipeline.testing import ManualClock, MemoryLedger
from storage.errors import Unavailable
from storage.model import Caller, Capacity, Heartbeat, Priority, Reference
from tests.support.builders import run
from tests.support.stages import claimed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from storage.model import Holding

CALLER = Caller()


class Heart:
    """A worker's heart, its book and its ledger."""

    def __init__(self, slots: int = 1) -> None:
        self.clock = ManualClock()
        self.ledger = MemoryLedger(self.clock)
        self.slots = Slots(slots)
        self.duty = Duty(self.clock, lease_seconds=30)
        self.beat = Beat(
            self.ledger.workers,
            self.ledger.runs,
            self.slots,
            self.duty,
            ["tasks.medium"],
            unclaimed=lambda: 5,
            clock=self.clock,
        )

    def start(self, reference: Reference) -> asyncio.Task[None]:
        """Run something in a slot; the run itself does not matter."""
        self.slots.reserve(reference)
        running = asyncio.create_task(forever())
        self.slots.start(run(task_id=reference.task_id, dispatch=reference.dispatch), running)
        return running

    async def sent_again(self) -> list[Reference]:
        return [row.reference for row in await self.ledger.outbox.poll(10, 30)]


async def forever() -> None:
    await asyncio.Event().wait()


@contextmanager
def away(hand: object, method: str) -> Iterator[None]:
    """Let the database be away for one method of one hand."""

    async def unavailable(_: object) -> None:
        raise Unavailable("away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand, method, unavailable)
        yield


async def test_it_reports_the_worker_and_lets_it_start() -> None:
    heart = Heart(slots=4)
    await heart.beat(None)
    assert heart.duty.fresh
    assert (await heart.ledger.outbox.capacity())[Priority.MEDIUM] == Capacity(workers=1, free=4)
    assert (await heart.ledger.upkeep.unclaimed())[Priority.MEDIUM] == 5


async def test_the_log_tells_the_id_that_a_janitor_would_name() -> None:
    heart = Heart(slots=4)
    with structlog.testing.capture_logs() as logs:
        await heart.beat(None)
        await heart.beat(None)
    signed_on = {"event": "signed on", "log_level": "info", "queues": ("tasks.medium",), "slots": 4}
    assert logs == [{**signed_on, "worker_id": str(heart.duty.worker_id)}]


async def test_a_heartbeat_counts_from_when_it_was_sent() -> None:
    heart = Heart()
    original = heart.ledger.workers.beat

    async def slow(beat: Heartbeat) -> bool:
        await heart.clock.advance(16)
        return await original(beat)

    heart.ledger.workers.beat = slow  # type: ignore[method-assign]  # a database that takes its time
    await heart.beat(None)
    assert not heart.duty.fresh


async def test_a_heartbeat_without_an_answer_counts_for_nothing() -> None:
    heart = Heart()
    with away(heart.ledger.workers, "beat"), pytest.raises(Unavailable):
        await heart.beat(None)
    assert not heart.duty.fresh


async def test_a_cancellation_that_was_asked_reaches_the_run() -> None:
    heart = Heart()
    await heart.beat(None)
    task = await claimed(heart.ledger, heart.duty.worker_id)
    running = heart.start(task.reference)
    await heart.beat(None)
    assert heart.slots.why(task.reference) is None
    await heart.ledger.tasks.cancel(CALLER, task.task_id)
    await heart.beat(None)
    await asyncio.wait({running})
    assert (running.cancelled(), heart.slots.why(task.reference)) == (True, Stop.CANCELLED)


async def test_what_only_the_database_holds_is_dispatched_again_at_the_second_beat() -> None:
    heart = Heart()
    await heart.beat(None)
    task = await claimed(heart.ledger, heart.duty.worker_id)
    await heart.beat(None)
    assert await heart.sent_again() == []
    await heart.beat(None)
    assert await heart.sent_again() == [Reference(task.task_id, 2)]


async def test_what_was_on_its_way_at_one_beat_only_is_left_alone() -> None:
    heart = Heart()
    await heart.beat(None)
    task = await claimed(heart.ledger, heart.duty.worker_id)
    await heart.beat(None)
    heart.start(task.reference)
    await heart.beat(None)
    heart.slots.release(task.reference)
    await heart.beat(None)
    assert await heart.sent_again() == []


async def test_what_the_database_does_not_give_it_is_stopped_at_the_second_beat() -> None:
    heart, reference = Heart(), run().reference
    heart.start(reference)
    await heart.beat(None)
    assert heart.slots.why(reference) is None
    await heart.beat(None)
    assert heart.slots.why(reference) is Stop.LOST


async def test_a_difference_from_before_an_outage_is_forgotten() -> None:
    heart, foreign = Heart(), run().reference
    await heart.beat(None)
    forgotten = await claimed(heart.ledger, heart.duty.worker_id)
    heart.start(foreign)
    await heart.beat(None)
    with away(heart.ledger.workers, "held_by"), pytest.raises(Unavailable):
        await heart.beat(None)
    await heart.beat(None)
    assert (heart.slots.why(foreign), await heart.sent_again()) == (None, [])
    await heart.beat(None)
    assert heart.slots.why(foreign) is Stop.LOST
    assert await heart.sent_again() == [Reference(forgotten.task_id, 2)]


async def test_a_run_whose_claim_came_in_during_the_comparison_is_left_alone() -> None:
    heart, reference = Heart(), run().reference
    heart.slots.reserve(reference)
    await heart.beat(None)
    original = heart.ledger.workers.held_by

    async def overtaken(worker_id: UUID) -> list[Holding]:
        holdings = await original(worker_id)
        heart.slots.start(
            run(task_id=reference.task_id, dispatch=reference.dispatch), asyncio.create_task(forever())
        )
        return holdings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heart.ledger.workers, "held_by", overtaken)
        await heart.beat(None)
    assert heart.slots.why(reference) is None


async def test_a_worker_declared_dead_stops_all_and_begins_anew() -> None:
    heart, reference = Heart(), run().reference
    await heart.beat(None)
    first = heart.duty.worker_id
    heart.start(reference)
    await heart.clock.advance(31)
    assert await heart.ledger.workers.declare_dead(30) == [first]
    await heart.beat(None)
    assert (heart.slots.why(reference), heart.duty.fresh) == (Stop.LOST, False)
    await heart.beat(None)
    assert heart.duty.fresh
    assert heart.duty.worker_id != first
