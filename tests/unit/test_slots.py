"""A worker's book: what it holds, and what of it may still be stopped."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from pipeline.slots import Slots, Stop
from pipeline.testing import ManualClock
from storage.model import Priority
from tests.support.builders import run

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_slot_is_taken_from_before_the_claim_until_it_is_released() -> None:
    slots, reference = Slots(2), run().reference
    slots.reserve(reference)
    assert (slots.free, reference in slots, slots.held) == (1, True, frozenset({reference}))
    slots.release(reference)
    slots.release(reference)
    assert (slots.free, reference in slots) == (2, False)


def test_the_most_free_since_last_asked_is_what_a_relay_may_pack_for() -> None:
    slots, first, second = Slots(2), run().reference, run().reference
    slots.reserve(first)
    slots.reserve(second)
    assert slots.most_free() == 2
    assert slots.most_free() == 0
    slots.release(first)
    slots.reserve(first)
    assert (slots.free, slots.most_free()) == (0, 1)


async def test_the_first_reason_to_stop_stands() -> None:
    slots, task = Slots(1), run()
    slots.reserve(task.reference)
    running = asyncio.create_task(forever())
    slots.start(task, running)
    slots.stop(task.reference, Stop.CANCELLED)
    slots.stop_all(Stop.INTERRUPTED)
    await asyncio.wait({running})
    assert running.cancelled()
    assert slots.why(task.reference) is Stop.CANCELLED


async def test_what_is_not_held_or_not_started_cannot_be_stopped() -> None:
    slots, task = Slots(1), run()
    slots.stop(task.reference, Stop.CANCELLED)
    slots.reserve(task.reference)
    slots.stop(task.reference, Stop.CANCELLED)
    assert slots.why(task.reference) is None


async def test_how_far_a_queue_was_claimed_never_goes_back() -> None:
    slots = Slots(3)
    for minutes in (1, 5, 3):
        task = run(priority=Priority.HIGH, queued_at=NOON + timedelta(minutes=minutes))
        slots.reserve(task.reference)
        slots.start(task, asyncio.create_task(asyncio.sleep(0)))
    assert slots.newest() == (NOON + timedelta(minutes=5), None, None)


async def test_a_run_whose_handler_has_ended_can_no_longer_be_stopped() -> None:
    slots, task = Slots(1), run()
    slots.reserve(task.reference)
    running = asyncio.create_task(forever())
    slots.start(task, running)
    slots.ended(task.reference)
    slots.stop_all(Stop.INTERRUPTED)
    await ManualClock().advance(0)
    assert (running.done(), slots.why(task.reference)) == (False, None)
    assert slots.held == {task.reference}
    slots.release(task.reference)
    slots.ended(task.reference)
    assert slots.free == 1


def test_a_slot_is_free_when_its_handler_has_ended_and_no_more_is_held_than_twice_the_slots() -> None:
    slots = Slots(2)
    tasks = [run() for _ in range(4)]
    for number, task in enumerate(tasks):
        assert slots.free == min(2, 4 - number)
        slots.reserve(task.reference)
        slots.ended(task.reference)
        slots.ended(task.reference)
    assert (slots.free, slots.running) == (0, 0)
    slots.release(tasks[0].reference)
    assert slots.free == 1
