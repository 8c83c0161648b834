"""The worker's source: who gets the free slots, and when a message may go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pipeline.broker import Message
from pipeline.broker.topology import DLQ
from pipeline.references import encode
from pipeline.slots import Slots
from pipeline.stages import Consume
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.model import Priority
from tests.support.builders import run
from tests.support.stages import busy, kept, ready, sent
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.model import Reference

HIGH, LOW = "tasks.high", "tasks.low"
QUEUES = [HIGH, "tasks.medium", LOW]


def consume(broker: MemoryBroker, slots: Slots, queues: Sequence[str] = (HIGH,)) -> Consume:
    return Consume(broker, queues, slots, MemoryLedger(ManualClock()).runs)


def references(count: int) -> list[Reference]:
    return [run().reference for _ in range(count)]


@pytest.mark.parametrize(
    ("filled", "shares"), [(QUEUES, [60, 30, 10]), ([HIGH, LOW], [86, 0, 14]), ([LOW], [0, 0, 100])]
)
async def test_queues_that_have_work_share_the_slots_6_to_3_to_1(
    filled: list[str], shares: list[int]
) -> None:
    sent_to = {queue: references(100) for queue in filled}
    async with MemoryBroker() as broker, consume(broker, Slots(100), QUEUES) as source:
        for queue, packed in sent_to.items():
            await broker.publish([Message(queue, encode(packed))])
        await eventually(lambda: source.unclaimed == 100 * len(filled))
        parcel = await source.pull()
        assert parcel is not None
        taken = set(parcel.body.references)
        assert [len(taken & set(sent_to.get(queue, []))) for queue in QUEUES] == shares


async def test_a_wave_is_no_larger_than_a_claim_should_be() -> None:
    slots = Slots(300)
    async with MemoryBroker() as broker, consume(broker, slots) as source:
        await broker.publish([Message(HIGH, encode(references(300)))])
        waves = [await source.pull() for _ in range(3)]
        assert [len(parcel.body.references) for parcel in waves if parcel] == [128, 128, 44]
        assert (slots.free, source.unclaimed) == (0, 0)


@pytest.mark.parametrize(("passed_on", "messages"), [(1, 1), (2, 0)])
async def test_a_message_is_acked_when_its_last_reference_has_passed_on(
    passed_on: int, messages: int
) -> None:
    slots, both = Slots(1), references(2)
    async with MemoryBroker() as broker, consume(broker, slots) as source:
        await broker.publish([Message(HIGH, encode(both))])
        for reference in both[:passed_on]:
            parcel = await source.pull()
            assert parcel is not None
            assert parcel.body.references == [reference]
            await parcel.settle(None)
            slots.release(reference)
        assert await kept(broker, HIGH) == messages


async def test_what_comes_again_after_its_claim_was_refused_goes_with_a_claim_of_its_own() -> None:
    """The claim has handed it back, and that hand-over may be here before the wave's messages have gone."""
    slots, [handed_back] = Slots(2), references(1)
    async with MemoryBroker() as broker, consume(broker, slots) as source:
        await broker.publish([Message(HIGH, encode([handed_back]))])
        refused = await source.pull()
        slots.release(handed_back)
        await broker.publish([Message(HIGH, encode([handed_back]))])
        again = await asyncio.wait_for(source.pull(), timeout=0.5)
        assert refused is not None
        assert again is not None
        assert again.body.references == [handed_back]
        await refused.settle(None)
        assert await kept(broker, HIGH) == 1


async def test_a_slot_that_becomes_free_is_used_at_once() -> None:
    slots, both = Slots(1), references(2)
    async with MemoryBroker() as broker, consume(broker, slots) as source:
        await broker.publish([Message(HIGH, encode(both))])
        await source.pull()
        pulling = asyncio.create_task(source.pull())
        await ManualClock().advance(0)
        assert not pulling.done()
        slots.release(both[0])
        parcel = await asyncio.wait_for(pulling, timeout=0.5)
        assert parcel is not None
        assert parcel.body.references == both[1:]


async def test_while_all_slots_have_work_a_claim_waits_until_some_are_free() -> None:
    slots, packed = await busy(100, ends=1000), references(300)
    ahead, gathered = 40, 20
    left = 100 + ahead - 128
    async with MemoryBroker() as broker, consume(broker, slots) as source:
        await broker.publish([Message(HIGH, encode(packed))])
        assert await source.pull() is not None
        pulling = asyncio.create_task(source.pull())
        for reference in packed[: gathered + 1 - left]:
            await ManualClock().advance(0)
            assert not pulling.done()
            slots.release(reference)
        parcel = await asyncio.wait_for(pulling, timeout=0.5)
        assert parcel is not None
        assert len(parcel.body.references) == gathered + 1


async def test_a_duplicate_of_what_is_held_costs_no_slot_and_its_message_goes() -> None:
    slots = Slots(3)
    held, fresh = references(2)
    slots.reserve(held)
    async with MemoryBroker() as broker, consume(broker, slots) as source:
        await broker.publish([Message(HIGH, encode([held])), Message(HIGH, encode([fresh, fresh]))])
        parcel = await source.pull()
        assert parcel is not None
        assert parcel.body.references == [fresh]
        assert (slots.free, source.unclaimed) == (1, 0)
        assert await kept(broker, HIGH) == 1
        await parcel.settle(None)


@pytest.mark.parametrize(("failure", "left"), [(None, 0), (ValueError("a bug"), 1)])
async def test_a_message_that_comes_again_during_its_claim_shares_its_fate(
    failure: Exception | None, left: int
) -> None:
    async with MemoryBroker() as broker, consume(broker, Slots(2)) as source:
        await broker.publish([Message(HIGH, encode(references(1)))])
        parcel = await source.pull()
        assert parcel is not None
        broker.stop()
        broker.start()
        await eventually(lambda: source.unclaimed == 1)
        pulling = asyncio.create_task(source.pull())
        await eventually(lambda: source.unclaimed == 0)
        await source.quiesce()
        await pulling
        await parcel.settle(failure)
        assert await kept(broker, HIGH) == left


async def test_messages_that_name_no_task_do_not_use_up_the_prefetch() -> None:
    [reference] = references(1)
    async with MemoryBroker() as broker, consume(broker, Slots(1)) as source:
        empty = [Message(HIGH, encode([]))] * 4
        await broker.publish([*empty, Message(HIGH, encode([reference]))])
        parcel = await asyncio.wait_for(source.pull(), timeout=0.5)
        assert parcel is not None
        assert parcel.body.references == [reference]


@pytest.mark.parametrize("claimed", ["before the drain", "during the drain"])
async def test_on_drain_a_message_not_wholly_pulled_returns_to_its_queue(claimed: str) -> None:
    async with MemoryBroker() as broker, consume(broker, Slots(1)) as source:
        await broker.publish([Message(HIGH, encode(references(2)))])
        first = await source.pull()
        assert first is not None
        if claimed == "before the drain":
            await first.settle(None)
        await source.quiesce()
        await first.settle(None)
        assert await source.pull() is None
        assert await ready(broker, HIGH) == 1


async def test_a_wave_that_fails_frees_its_slots_and_returns_after_a_moment() -> None:
    clock, slots = ManualClock(), Slots(1)
    runs = MemoryLedger(clock).runs
    async with MemoryBroker() as broker, Consume(broker, [HIGH], slots, runs, clock=clock) as source:
        await broker.publish([Message(HIGH, encode(references(1)))])
        parcel = await source.pull()
        assert parcel is not None
        settling = asyncio.create_task(parcel.settle(ValueError("a bug")))
        await clock.advance(0.9)
        assert (source.unclaimed, settling.done()) == (0, False)
        await clock.advance(0.2)
        await settling
        await eventually(lambda: source.unclaimed == 1)
        assert slots.free == 1


async def test_a_wave_that_fails_during_the_drain_returns_at_once() -> None:
    clock, slots = ManualClock(), Slots(1)
    runs = MemoryLedger(clock).runs
    async with MemoryBroker() as broker, Consume(broker, [HIGH], slots, runs, clock=clock) as source:
        await broker.publish([Message(HIGH, encode(references(1)))])
        parcel = await source.pull()
        assert parcel is not None
        settling = asyncio.create_task(parcel.settle(ValueError("a bug")))
        await source.quiesce()
        await asyncio.wait_for(settling, timeout=0.5)
        assert await ready(broker, HIGH) == 1


class TestHandBack:
    async def test_what_finds_no_slot_in_time_goes_back_through_the_database(self) -> None:
        clock = ManualClock()
        ledger, slots = MemoryLedger(clock), Slots(1)
        [reference] = await sent(ledger, priority=Priority.LOW)
        slots.reserve(run().reference)
        async with (
            MemoryBroker() as broker,
            Consume(broker, [LOW], slots, ledger.runs, clock=clock) as source,
        ):
            await broker.publish([Message(LOW, encode([reference]))])
            pulling = asyncio.create_task(source.pull())
            await eventually(lambda: source.unclaimed == 1)
            await clock.advance(4.9)
            slots.released.set()
            await clock.advance(0)
            assert source.unclaimed == 1
            await clock.advance(0.2)
            slots.released.set()
            await eventually(lambda: source.unclaimed == 0)
            await clock.advance(5.1)
            assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [reference]
            await source.quiesce()
            assert await pulling is None
            assert await kept(broker, LOW) == 0

    async def test_a_drain_that_comes_in_between_loses_nothing(self) -> None:
        clock, asked, answer = ManualClock(), asyncio.Event(), asyncio.Event()
        ledger, slots = MemoryLedger(clock), Slots(1)

        async def hand_back(_references: Sequence[Reference], _delay_seconds: float) -> None:
            asked.set()
            await answer.wait()

        ledger.runs.hand_back = hand_back  # type: ignore[method-assign,assignment]  # a database that takes its time
        slots.reserve(run().reference)
        async with (
            MemoryBroker() as broker,
            Consume(broker, [LOW], slots, ledger.runs, clock=clock) as source,
        ):
            await broker.publish([Message(LOW, encode(references(1)))])
            await eventually(lambda: source.unclaimed == 1)
            await clock.advance(5.1)
            await broker.publish([Message(LOW, encode(references(1)))])
            await eventually(lambda: source.unclaimed == 2)
            pulling = asyncio.create_task(source.pull())
            await asked.wait()
            await source.quiesce()
            answer.set()
            assert await pulling is None
            assert await kept(broker, LOW) == 2


async def test_what_nobody_can_read_moves_to_the_dlq() -> None:
    async with MemoryBroker() as broker, consume(broker, Slots(1)):
        await broker.publish([Message(HIGH, b"\xff")])

        async def moved() -> bool:
            return await ready(broker, DLQ) == 1

        await eventually(moved)
