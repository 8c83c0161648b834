"""What only the memory broker does: time that a test moves, a bound, outages by hand."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.broker import BrokerUnavailable, Depth, Message, Publication
from pipeline.broker.memory import MemoryBroker
from pipeline.broker.topology import DLQ
from pipeline.testing.clock import ManualClock
from tests.support.inbox import Inbox

WORK = "tasks.high"
RETRY = "tasks.high.retry.30s"

CONFIRMED, RETURNED, REFUSED = Publication.CONFIRMED, Publication.RETURNED, Publication.REFUSED


def messages(*numbers: int, route: str = WORK) -> list[Message]:
    return [Message(route, b"%d" % number) for number in numbers]


async def test_a_retry_queue_holds_each_message_for_its_time_to_the_moment() -> None:
    clock = ManualClock()
    async with MemoryBroker(clock=clock) as broker:
        await broker.declare(RETRY)
        await broker.publish(messages(1, route=RETRY))
        await clock.advance(10)
        await broker.publish(messages(2, route=RETRY))

        await clock.advance(19.999)
        assert await broker.depth(WORK) == Depth(0, 0)
        await clock.advance(0.001)
        assert await broker.depth(WORK) == Depth(1, 0)
        await clock.advance(9.999)
        assert await broker.depth(RETRY) == Depth(1, 0)
        await clock.advance(0.001)
        assert await broker.depth(RETRY) == Depth(0, 0)


async def test_a_retry_queue_keeps_its_messages_until_their_work_queue_is_back() -> None:
    clock = ManualClock()
    async with MemoryBroker(clock=clock) as broker:
        await broker.declare(RETRY)
        await broker.publish(messages(1, route=RETRY))
        broker.delete(WORK)

        await clock.advance(60)
        assert await broker.depth(RETRY) == Depth(1, 0)
        await broker.declare(WORK)
        await clock.advance(1)

        assert await broker.depth(RETRY) == Depth(0, 0)
        assert await broker.depth(WORK) == Depth(1, 0)


async def test_time_goes_on_for_what_is_in_a_retry_queue_over_a_closing() -> None:
    clock = ManualClock()
    broker = MemoryBroker(clock=clock)
    async with broker:
        await broker.declare(RETRY)
        await broker.publish(messages(1, route=RETRY))
    await clock.advance(40)
    async with broker:
        await clock.advance(0)

        assert await broker.depth(WORK) == Depth(1, 0)


async def test_a_full_queue_refuses_and_others_do_not() -> None:
    async with MemoryBroker(capacity=2) as broker:
        await broker.declare(WORK)
        await broker.declare("tasks.low")

        assert await broker.publish(messages(1, 2, 3)) == [CONFIRMED, CONFIRMED, REFUSED]
        assert await broker.publish(messages(1, route="tasks.low")) == [CONFIRMED]

        inbox = Inbox()
        await broker.consume(WORK, 1, inbox)
        await inbox.take()
        assert await broker.publish(messages(4, 5)) == [CONFIRMED, REFUSED]


async def test_nobody_is_called_from_within_a_publish_or_a_settlement() -> None:
    inbox = Inbox()
    async with MemoryBroker() as broker:
        await broker.consume(WORK, 1, inbox)

        await broker.publish(messages(1, 2))
        assert inbox.bodies == []

        first = await inbox.take()
        await first.ack()
        assert inbox.bodies == [b"1"]
        assert (await inbox.take()).body == b"2"


async def test_consumers_are_served_in_turn() -> None:
    inboxes = [Inbox() for _ in range(3)]
    async with MemoryBroker() as broker:
        for inbox in inboxes:
            await broker.consume(WORK, 10, inbox)
        await broker.publish(messages(*range(9)))
        for inbox in inboxes:
            await inbox.take()

        assert [inbox.bodies for inbox in inboxes] == [
            [b"0", b"3", b"6"],
            [b"1", b"4", b"7"],
            [b"2", b"5", b"8"],
        ]


async def test_an_outage_refuses_calls_takes_deliveries_back_and_ends_by_itself() -> None:
    inbox = Inbox()
    async with MemoryBroker() as broker:
        await broker.consume(WORK, 1, inbox)
        await broker.publish(messages(1, 2))
        before = await inbox.take()

        broker.stop()
        for call in (broker.publish(messages(3)), broker.declare(WORK), broker.depth(WORK)):
            with pytest.raises(BrokerUnavailable):
                await call
        waiting = asyncio.create_task(broker.ready())
        await before.ack()
        await broker.consume("tasks.low", 1, inbox)
        broker.start()
        await waiting

        again = await inbox.take()
        assert (again.body, again.headers["x-delivery-count"]) == (b"1", 1)
        await before.ack()
        assert await broker.depth(WORK) == Depth(1, 1)
        assert await broker.depth("tasks.low") == Depth(0, 1)


async def test_what_a_purge_forgets_is_not_what_was_delivered() -> None:
    inbox = Inbox()
    async with MemoryBroker() as broker:
        await broker.consume(WORK, 1, inbox)
        await broker.publish(messages(1, 2, 3))
        held = await inbox.take()

        assert broker.purge(WORK) == 2

        await held.nack()
        assert (await inbox.take()).body == b"1"
        assert await broker.depth(WORK) == Depth(0, 1)


async def test_a_deleted_queue_takes_its_deliveries_along() -> None:
    inbox = Inbox()
    async with MemoryBroker() as broker:
        subscription = await broker.consume(WORK, 1, inbox)
        await broker.publish(messages(1, 2))
        held = await inbox.take()

        broker.delete(WORK)
        assert await broker.publish(messages(3)) == [RETURNED]
        await held.nack()
        await subscription.cancel()
        await asyncio.sleep(0)

        assert await broker.depth(WORK) is None


async def test_without_a_queue_for_dead_letters_they_are_dropped() -> None:
    inbox = Inbox()
    async with MemoryBroker() as broker:
        await broker.consume(WORK, 1, inbox)
        await broker.publish(messages(1, 2))
        broker.delete(DLQ)

        await (await inbox.take()).reject()

        assert (await inbox.take()).body == b"2"
        assert await broker.depth(DLQ) is None
