"""What every broker does; the stages rely on nothing else."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

import aio_pika
import pytest

from pipeline.broker import Broker, Depth, Message, Publication
from pipeline.broker.memory import MemoryBroker
from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.topology import DELIVERY_LIMIT, DLQ, LARGEST_BODY_BYTES, UnknownRoute
from tests.support.inbox import Inbox
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.servers import Vhost

WORK = "tasks.high"
OTHER = "tasks.low"
RETRY = "tasks.high.retry.1s"

CONFIRMED, RETURNED, REFUSED = Publication.CONFIRMED, Publication.RETURNED, Publication.REFUSED


class Server(Protocol):
    """Where queues live on while the brokers of processes come and go."""

    def connect(self) -> Broker: ...

    async def delete(self, queue: str) -> None: ...


class MemoryServer:
    def __init__(self) -> None:
        self._broker = MemoryBroker()

    def connect(self) -> Broker:
        return self._broker

    async def delete(self, queue: str) -> None:
        self._broker.delete(queue)


class RabbitServer:
    def __init__(self, vhost: Vhost) -> None:
        self._url = vhost.url

    def connect(self) -> Broker:
        return RabbitBroker(self._url, "contract")

    async def delete(self, queue: str) -> None:
        async with await aio_pika.connect(self._url) as connection, connection.channel() as channel:
            await channel.queue_delete(queue)


@pytest.fixture(params=["memory", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> Server:
    return MemoryServer() if request.param == "memory" else RabbitServer(request.getfixturevalue("rabbitmq"))


def bodies(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def messages(*numbers: int, route: str = WORK) -> list[Message]:
    return [Message(route, body) for body in bodies(*numbers)]


async def fill(broker: Broker, *numbers: int, route: str = WORK) -> None:
    await broker.declare(route)
    assert await broker.publish(messages(*numbers, route=route)) == [CONFIRMED] * len(numbers)


async def depth_becomes(broker: Broker, queue: str, ready: int, consumers: int = 0) -> None:
    seen: list[Depth | None] = []

    async def reached() -> bool:
        seen.append(await broker.depth(queue))
        return seen[-1] == Depth(ready, consumers)

    try:
        await eventually(reached, 20)
    except AssertionError:
        pytest.fail(f"{queue} should come to {Depth(ready, consumers)} and stays at {seen[-1]}")


async def test_a_message_without_queue_is_returned_and_confirmed_once_there_is_one(server: Server) -> None:
    async with server.connect() as broker:
        await broker.ready()
        assert await broker.publish(messages(1)) == [RETURNED]

        await broker.declare(WORK)

        assert await broker.publish(messages(1)) == [CONFIRMED]


async def test_a_consumer_tells_that_the_broker_knows_it(server: Server) -> None:
    async with server.connect() as broker:
        await broker.ready()
        subscription = await broker.consume(WORK, 1, Inbox())
        await depth_becomes(broker, WORK, 0, consumers=1)
        await eventually(lambda: subscription.detached_seconds == 0.0)


async def test_a_batch_gets_one_exact_answer_for_each_message_in_order(server: Server) -> None:
    routes = [(WORK, OTHER, "tasks.medium")[number % 3] for number in range(300)]
    async with server.connect() as broker:
        await broker.declare(WORK)
        await broker.declare("tasks.medium")

        answers = await broker.publish([Message(route, b"%d" % n) for n, route in enumerate(routes)])

        assert answers == [RETURNED if route == OTHER else CONFIRMED for route in routes]
        await depth_becomes(broker, WORK, 100)
        await depth_becomes(broker, "tasks.medium", 100)


async def test_concurrent_batches_do_not_mix_their_answers(server: Server) -> None:
    async with server.connect() as broker:
        await broker.declare(WORK)

        answers = await asyncio.gather(
            *(broker.publish(messages(*range(20), route=WORK if n % 2 else OTHER)) for n in range(30))
        )

        assert answers == [[CONFIRMED if n % 2 else RETURNED] * 20 for n in range(30)]
        await depth_becomes(broker, WORK, 300)


async def test_a_cancelled_publish_shifts_no_later_answer(server: Server) -> None:
    async with server.connect() as broker:
        await broker.declare(WORK)
        for number in range(20):
            hasty = asyncio.create_task(broker.publish(messages(1, 2, 3, route=OTHER)))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            hasty.cancel()

            assert await broker.publish(messages(number)) == [CONFIRMED]


async def test_nothing_to_publish_needs_no_answer(server: Server) -> None:
    async with server.connect() as broker:
        assert await broker.publish([]) == []


async def test_a_body_too_large_is_refused_and_its_neighbours_are_not(server: Server) -> None:
    largest = Message(WORK, b"x" * LARGEST_BODY_BYTES)
    async with server.connect() as broker:
        await broker.declare(WORK)

        answers = await broker.publish([*messages(1), Message(WORK, largest.body + b"x"), largest])

        assert answers == [CONFIRMED, REFUSED, CONFIRMED]
        inbox = Inbox()
        await broker.consume(WORK, 10, inbox)
        assert [(await inbox.take()).body for _ in range(2)] == [b"1", largest.body]


async def test_an_empty_body_is_a_message(server: Server) -> None:
    async with server.connect() as broker:
        await broker.declare(WORK)
        inbox = Inbox()
        await broker.consume(WORK, 1, inbox)

        assert await broker.publish([Message(WORK, b"")]) == [CONFIRMED]

        assert (await inbox.take()).body == b""


async def test_a_name_outside_the_grammar_is_neither_declared_nor_consumed(server: Server) -> None:
    async with server.connect() as broker:
        with pytest.raises(UnknownRoute):
            await broker.declare("tasks.urgent")
        with pytest.raises(UnknownRoute):
            await broker.consume("tasks.urgent", 1, Inbox())
        assert await broker.publish([Message("tasks.urgent", b"")]) == [RETURNED]
        assert await broker.publish([Message("tasks." + "x" * 300, b"")]) == [RETURNED]


async def test_declaring_is_idempotent_and_keeps_what_is_there(server: Server) -> None:
    async with server.connect() as broker:
        for _ in range(3):
            await broker.declare(RETRY)
        await fill(broker, 1, 2)
        await broker.declare(WORK)

        await depth_becomes(broker, WORK, 2)
        assert await broker.depth(DLQ) == Depth(0, 0)


async def test_depth_counts_ready_messages_and_consumers(server: Server) -> None:
    async with server.connect() as broker:
        await broker.ready()
        assert await broker.depth(WORK) is None
        await fill(broker, 1, 2, 3)
        await depth_becomes(broker, WORK, 3)

        await broker.consume(WORK, 2, Inbox())

        await depth_becomes(broker, WORK, 1, consumers=1)


async def test_no_more_than_prefetch_are_unsettled(server: Server) -> None:
    inbox = Inbox()
    async with server.connect() as broker:
        await fill(broker, *range(5))
        await broker.consume(WORK, 2, inbox)
        first = await inbox.take()
        await inbox.take()
        await depth_becomes(broker, WORK, 3, consumers=1)
        assert inbox.bodies == bodies(0, 1)

        await first.ack()

        assert (await inbox.take()).body == b"2"
        await depth_becomes(broker, WORK, 2, consumers=1)
        assert inbox.bodies == bodies(0, 1, 2)


async def test_what_is_given_back_comes_first_and_counts_its_returns(server: Server) -> None:
    inbox = Inbox()
    async with server.connect() as broker:
        await fill(broker, 1, 2, 3)
        await broker.consume(WORK, 1, inbox)
        delivery = await inbox.take()
        assert delivery.queue == WORK

        await delivery.nack()
        again = await inbox.take()

        assert again.body == b"1"
        assert again.headers["x-delivery-count"] == 1
        await again.ack()
        for _ in range(2):
            await (await inbox.take()).ack()
        await depth_becomes(broker, WORK, 0, consumers=1)
        assert inbox.bodies == bodies(1, 1, 2, 3)


async def test_several_given_back_keep_their_order(server: Server) -> None:
    inbox, second = Inbox(), Inbox()
    async with server.connect() as broker:
        await fill(broker, 1, 2, 3, 4)
        subscription = await broker.consume(WORK, 3, inbox)
        held = [await inbox.take() for _ in range(3)]
        await subscription.cancel()

        for delivery in held:
            await delivery.nack()
        await depth_becomes(broker, WORK, 4)
        await broker.consume(WORK, 4, second)

        assert [(await second.take()).body for _ in range(4)] == bodies(1, 2, 3, 4)


async def test_a_second_settlement_does_nothing(server: Server) -> None:
    inbox = Inbox()
    async with server.connect() as broker:
        await fill(broker, 1, 2, 3)
        await broker.consume(WORK, 1, inbox)
        first = await inbox.take()

        await first.ack()
        await first.ack()
        await first.nack()
        second = await inbox.take()
        await second.nack()
        await second.ack()

        assert [(await inbox.take()).body for _ in range(1)] == [b"2"]
        await depth_becomes(broker, WORK, 1, consumers=1)
        assert inbox.bodies == bodies(1, 2, 2)


async def test_a_cancelled_consumer_gets_no_more_and_can_still_settle(server: Server) -> None:
    inbox, later = Inbox(), Inbox()
    async with server.connect() as broker:
        await fill(broker, 1, 2)
        subscription = await broker.consume(WORK, 2, inbox)
        first, second = await inbox.take(), await inbox.take()

        await subscription.cancel()
        await subscription.cancel()
        await fill(broker, 3)
        await broker.consume(WORK, 3, later)
        assert (await later.take()).body == b"3"
        await first.ack()
        await second.nack()

        assert (await later.take()).body == b"2"
        await depth_becomes(broker, WORK, 0, consumers=1)
        assert inbox.bodies == bodies(1, 2)
        assert later.bodies == bodies(3, 2)


@pytest.mark.parametrize(("kept", "cancel"), [(0, False), (398, True)])
async def test_closing_gives_back_what_is_unsettled_and_only_that(
    server: Server, kept: int, *, cancel: bool
) -> None:
    inbox, later = Inbox(), Inbox()
    async with server.connect() as broker:
        await fill(broker, *range(400))
        subscription = await broker.consume(WORK, 400, inbox)
        held = [await inbox.take() for _ in range(400)]
        if cancel:
            await subscription.cancel()
        for delivery in held[:kept] + held[kept + 2 :]:
            await delivery.ack()

    for delivery in held:
        await delivery.ack()

    async with server.connect() as broker:
        await depth_becomes(broker, WORK, 2)
        await broker.consume(WORK, 400, later)
        again = [await later.take() for _ in range(2)]
        assert [delivery.body for delivery in again] == bodies(kept, kept + 1)
        assert [delivery.headers["x-delivery-count"] for delivery in again] == [1, 1]


async def test_two_consumers_share_a_queue(server: Server) -> None:
    left, right = Inbox(), Inbox()
    async with server.connect() as broker:
        await broker.consume(WORK, 1, left)
        await broker.consume(WORK, 1, right)
        await eventually(lambda: consumers_of(broker, 2), 20)
        await fill(broker, *range(4))

        first, second = await left.take(), await right.take()
        await depth_becomes(broker, WORK, 2, consumers=2)
        await first.ack()
        await second.ack()
        await left.take()
        await right.take()

        assert sorted(left.bodies + right.bodies) == bodies(0, 1, 2, 3)
        assert len(left.bodies) == len(right.bodies) == 2


async def consumers_of(broker: Broker, number: int) -> bool:
    counted = await broker.depth(WORK)
    return counted is not None and counted.consumers == number


async def test_consuming_declares_the_queue_and_what_it_needs(server: Server) -> None:
    inbox = Inbox()
    async with server.connect() as broker:
        await broker.ready()
        await broker.consume(WORK, 1, inbox)
        await eventually(lambda: consumers_of(broker, 1), 20)

        assert await broker.depth(DLQ) == Depth(0, 0)
        assert await broker.publish(messages(1)) == [CONFIRMED]
        assert (await inbox.take()).body == b"1"


async def test_a_retry_queue_passes_its_messages_on_and_never_early(server: Server) -> None:
    inbox = Inbox()
    async with server.connect() as broker:
        await broker.consume(WORK, 10, inbox)
        await broker.declare(RETRY)
        started = time.monotonic()
        await fill(broker, 1, 2, route=RETRY)

        first, second = await inbox.take(), await inbox.take()

        # RabbitMQ counts in whole milliseconds, so up to one of them may be missing.
        assert 0.999 <= time.monotonic() - started <= 2.5
        assert [first.body, second.body] == bodies(1, 2)
        assert first.headers["x-first-death-queue"] == RETRY
        assert first.headers["x-first-death-reason"] == "expired"
        await depth_becomes(broker, RETRY, 0)


async def test_what_is_given_back_too_often_becomes_a_dead_letter(server: Server) -> None:
    inbox, dead = Inbox(), Inbox()
    async with server.connect() as broker:
        await broker.consume(DLQ, 1, dead)
        await fill(broker, 1, 2)
        await broker.consume(WORK, 1, inbox)
        for _ in range(DELIVERY_LIMIT + 1):
            delivery = await inbox.take()
            assert delivery.body == b"1"
            await delivery.nack()

        letter = await dead.take()

        assert (letter.queue, letter.body) == (DLQ, b"1")
        assert letter.headers["x-first-death-queue"] == WORK
        assert letter.headers["x-first-death-reason"] == "delivery_limit"
        assert (await inbox.take()).body == b"2"


async def test_a_dead_letter_may_be_given_back_as_often_as_anything_else(server: Server) -> None:
    inbox = Inbox()
    async with server.connect() as broker:
        await fill(broker, 1, 2, route=DLQ)
        await broker.consume(DLQ, 1, inbox)
        for _ in range(DELIVERY_LIMIT + 1):
            delivery = await inbox.take()
            assert delivery.body == b"1"
            await delivery.nack()

        assert (await inbox.take()).body == b"2"


async def test_what_is_rejected_becomes_a_dead_letter_at_once(server: Server) -> None:
    inbox, dead = Inbox(), Inbox()
    async with server.connect() as broker:
        await fill(broker, 1, 2)
        await broker.consume(WORK, 1, inbox)
        delivery = await inbox.take()

        await delivery.reject()
        await delivery.ack()

        assert (await inbox.take()).body == b"2"
        await broker.consume(DLQ, 1, dead)
        letter = await dead.take()
        assert letter.body == b"1"
        assert letter.headers["x-first-death-queue"] == WORK
        assert letter.headers["x-first-death-reason"] == "rejected"
        await letter.reject()
        await depth_becomes(broker, DLQ, 0, consumers=1)


async def test_a_consumer_survives_the_deletion_of_its_queue(server: Server) -> None:
    inbox = Inbox()
    async with server.connect() as broker:
        await fill(broker, 1, 2)
        await broker.consume(WORK, 2, inbox)
        gone = [await inbox.take() for _ in range(2)]

        await server.delete(WORK)
        await eventually(lambda: consumers_of(broker, 1), 20)
        for delivery in gone:
            await delivery.nack()
        await fill(broker, 3)

        assert (await inbox.take()).body == b"3"
        await depth_becomes(broker, WORK, 0, consumers=1)
