"""A worker's book: what it holds, and what of it may still be stopped."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.slots import GATHER_SECONDS, Slots, Stop
from pipeline.testing import ManualClock
from storage.model import Priority
from tests.support.builders import run
from tests.support.stages import Running, busy, ending

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


async def test_as_many_are_claimed_ahead_as_handlers_end_in_two_claims_and_while_some_gather() -> None:
    slots = await busy(100, ends=500, claim_seconds=0.05)
    assert slots.free == 100 + 500 * (2 * 0.05 + GATHER_SECONDS)
    slots.claimed(0.01)
    assert slots.free == 100 + 500 * (2 * 0.01 + GATHER_SECONDS)
    slots.claimed(10.0)
    assert slots.free == 200
    slots.claim_no_more_ahead()
    assert slots.free == 100


async def test_of_handlers_that_end_together_once_a_second_hardly_any_is_foreseen() -> None:
    clock = ManualClock()
    slots, most = Slots(64, clock), 0
    for _ in range(10):
        ending(slots, 64)
        await clock.advance(0.005)
        slots.claimed(0.005)
        most = max(most, slots.free)
        await clock.advance(0.995)
    assert most < 64 + 5


@pytest.mark.parametrize("count", [1, 2, 3, 100])
async def test_a_worker_with_nothing_to_do_claims_at_once_however_fast_it_was(count: int) -> None:
    slots = await busy(count, ends=10_000, claim_seconds=1.0)
    assert slots.worth_a_claim
    for _ in range(2 * count):
        slots.reserve(run().reference)
    assert (slots.used, slots.free) == (count, 0)


async def test_while_all_slots_have_work_slots_gather_for_a_claim() -> None:
    slots = await busy(100, ends=1000)
    gathered = 1000 * GATHER_SECONDS
    claimed = [run().reference for _ in range(100 + int(2 * gathered))]
    for reference in claimed:
        slots.reserve(reference)
    assert not slots.worth_a_claim
    for number, reference in enumerate(claimed[:21], start=1):
        slots.release(reference)
        assert (slots.free, slots.worth_a_claim) == (number, number > gathered)


async def test_a_slot_is_worth_a_claim_where_handlers_take_their_time() -> None:
    slots, tasks = Slots(2), [run(), run()]
    for task in tasks:
        slots.reserve(task.reference)
        slots.start(task, Running())
    assert (slots.vacant, slots.used, slots.worth_a_claim) == (0, 2, False)
    slots.ended(tasks[0].reference)
    assert (slots.vacant, slots.used, slots.worth_a_claim) == (1, 1, True)
    slots.release(tasks[1].reference)
    assert (slots.vacant, slots.used) == (2, 0)
