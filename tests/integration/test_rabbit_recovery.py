"""RabbitMQ goes away in mid-work: all that was confirmed is delivered, and nobody restarts anything."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from pipeline.broker import BrokerUnavailable, Depth, Message, Publication
from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.topology import LARGEST_BODY_BYTES
from tests.support.inbox import Inbox
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pipeline.broker import Broker, Delivery
    from tests.support.rabbitmq_node import RabbitmqNode
    from tests.support.servers import Vhost

WORK = "tasks.high"
RECOVERY_SECONDS = 60.0


class Traffic:
    """A publisher that repeats whatever was not confirmed, and a consumer that acks whatever comes."""

    def __init__(self) -> None:
        self.confirmed: set[bytes] = set()
        self.received: set[bytes] = set()
        self.deliveries = 0
        self.failures = 0

    def receive(self, delivery: Delivery) -> None:
        self.deliveries += 1
        self.received.add(delivery.body)
        acking = asyncio.ensure_future(delivery.ack())
        acking.add_done_callback(lambda done: done.result())

    async def publish(self, broker: Broker) -> None:
        number = 0
        while True:
            batch = {b"%d" % n for n in range(number, number + 20)}
            number += 20
            while waiting := [Message(WORK, body) for body in batch - self.confirmed]:
                try:
                    answers = await broker.publish(waiting)
                except BrokerUnavailable:
                    self.failures += 1
                    await broker.ready()
                    continue
                pairs = zip(waiting, answers, strict=True)
                self.confirmed |= {
                    message.body for message, answer in pairs if answer is Publication.CONFIRMED
                }

    async def goes_on(self) -> None:
        """Wait until what was published after this moment has come all the way."""
        before = set(self.confirmed)
        await eventually(lambda: (self.confirmed & self.received) - before, RECOVERY_SECONDS)


@asynccontextmanager
async def traffic_through(url: str) -> AsyncIterator[Traffic]:
    """Run traffic; at the end nothing that was confirmed may be missing, and nothing stay behind."""
    traffic = Traffic()
    async with RabbitBroker(url, "test", confirm_seconds=2) as broker:
        await broker.declare(WORK)
        await broker.consume(WORK, 50, traffic.receive)
        publishing = asyncio.create_task(traffic.publish(broker))
        await traffic.goes_on()
        yield traffic
        await traffic.goes_on()
        publishing.cancel()
        await eventually(lambda: traffic.confirmed <= traffic.received, RECOVERY_SECONDS)

        async def settled() -> bool:
            return await broker.depth(WORK) == Depth(0, 1)

        await eventually(settled, RECOVERY_SECONDS)


async def close_connections(vhost: Vhost) -> None:
    await vhost.server.ctl("close_all_connections", "--vhost", vhost.name, "maintenance")


async def test_closed_connections_lose_nothing(rabbitmq: Vhost) -> None:
    async with traffic_through(rabbitmq.url) as traffic:
        for _ in range(3):
            await close_connections(rabbitmq)
            await traffic.goes_on()


async def test_a_stopped_application_loses_nothing(
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
) -> None:
    node = await own_rabbitmq()
    async with traffic_through(node.url()) as traffic:
        await node.stop_app()
        await eventually(lambda: traffic.failures)
        await node.start_app()


async def test_a_killed_broker_loses_nothing(own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]]) -> None:
    node = await own_rabbitmq()
    async with traffic_through(node.url()) as traffic:
        # What this test is about are queues that have been there for longer.
        await node.write_down()
        node.kill()
        await eventually(lambda: traffic.failures)
        await node.start()


async def test_without_a_connection_publishing_fails_at_once_and_says_why(
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
) -> None:
    node = await own_rabbitmq()
    async with RabbitBroker(node.url(), "test") as broker:
        await broker.declare(WORK)
        node.kill()
        await eventually(lambda: unavailable(broker))

        started = time.monotonic()
        for call in (broker.publish([Message(WORK, b"")]), broker.declare(WORK), broker.depth(WORK)):
            with pytest.raises(BrokerUnavailable, match=r"Connect call failed|Connection reset"):
                await call
        assert time.monotonic() - started < 0.5


async def unavailable(broker: Broker) -> bool:
    try:
        await broker.depth(WORK)
    except BrokerUnavailable:
        return True
    return False


async def test_a_delivery_outlives_its_connection_and_settles_in_vain(rabbitmq: Vhost) -> None:
    inbox = Inbox()
    async with RabbitBroker(rabbitmq.url, "test") as broker:
        await broker.consume(WORK, 2, inbox)
        await eventually(lambda: published(broker, b"1"))
        before = await inbox.take()

        await close_connections(rabbitmq)
        again = await inbox.take()
        await before.ack()
        await before.nack()
        await before.reject()

        assert (again.body, again.headers["x-delivery-count"]) == (b"1", 1)
        await again.ack()
        await eventually(lambda: published(broker, b"2"))
        assert (await inbox.take()).body == b"2"
        assert inbox.bodies == [b"1", b"1", b"2"]


async def published(broker: Broker, body: bytes) -> bool:
    await broker.ready()
    return await broker.publish([Message(WORK, body)]) == [Publication.CONFIRMED]


async def test_an_alarm_stops_publishing_but_not_consuming(
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
) -> None:
    node, inbox = await own_rabbitmq(), Inbox()
    async with RabbitBroker(node.url(), "test", confirm_seconds=1) as broker:
        await broker.declare(WORK)
        await broker.publish([Message(WORK, b"%d" % number) for number in range(50)])
        await node.ctl("set_vm_memory_high_watermark", "0.00001")

        assert await broker.publish([Message(WORK, b"late")]) == [Publication.UNKNOWN]
        with pytest.raises(BrokerUnavailable, match="alarm"):
            await broker.publish([Message(WORK, b"not sent")])
        waiting = asyncio.create_task(broker.ready())
        await broker.consume(WORK, 1, inbox)
        for _ in range(50):
            await (await inbox.take()).ack()
        assert not waiting.done()

        await node.ctl("set_vm_memory_high_watermark", "0.4")
        await asyncio.wait_for(waiting, RECOVERY_SECONDS)
        assert await broker.publish([Message(WORK, b"after")]) == [Publication.CONFIRMED]
        await eventually(lambda: {b"late", b"after"} <= set(inbox.bodies[50:]) or settle_next(inbox))
        assert b"not sent" not in inbox.bodies


async def settle_next(inbox: Inbox) -> None:
    await (await inbox.take()).ack()


async def test_a_broker_that_stands_still_is_left_and_found_again(
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
) -> None:
    node, inbox = await own_rabbitmq(), Inbox()
    assert node._broker is not None
    async with RabbitBroker(node.url(), "test", confirm_seconds=1, watch_seconds=1) as broker:
        await broker.consume(WORK, 10, inbox)
        await eventually(lambda: published(broker, b"1"))
        held = await inbox.take()
        os.kill(node._broker.pid, signal.SIGSTOP)

        assert await broker.publish([Message(WORK, b"2")]) == [Publication.UNKNOWN]
        with pytest.raises(BrokerUnavailable):
            await broker.publish([Message(WORK, b"3")])
        await held.ack()
        started = time.monotonic()
        async with RabbitBroker(node.url(), "second") as second:
            await second.consume(WORK, 1, inbox)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(second.ready(), 0.5)
        assert time.monotonic() - started < 10

        os.kill(node._broker.pid, signal.SIGCONT)
        await asyncio.wait_for(broker.ready(), RECOVERY_SECONDS)
        await eventually(lambda: published(broker, b"4"), RECOVERY_SECONDS)
        await eventually(lambda: b"4" in inbox.bodies or settle_next(inbox), RECOVERY_SECONDS)


async def test_a_queue_that_is_silent_costs_no_connection_and_no_other_queue(
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
) -> None:
    node, silent = await own_rabbitmq(), "tasks.low"
    leader = f"whereis('%2F_{silent}')"  # what a quorum queue is to Erlang; suspended, it answers nothing
    async with RabbitBroker(node.url(), "test", confirm_seconds=1) as broker:
        for queue in (WORK, silent):
            await broker.declare(queue)
        both = [Message(WORK, b"1"), Message(silent, b"2")]
        assert await broker.publish(both) == [Publication.CONFIRMED] * 2
        connections = await node.evaluate("rabbit_networking:connections().")
        await node.evaluate(f"sys:suspend({leader}).")

        for _ in range(2):
            assert await broker.publish(both) == [Publication.CONFIRMED, Publication.UNKNOWN]
        assert await node.evaluate("rabbit_networking:connections().") == connections

        await node.evaluate(f"sys:resume({leader}).")
        assert await broker.publish(both) == [Publication.CONFIRMED] * 2


async def test_closing_does_not_wait_for_a_broker_that_stands_still(
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
) -> None:
    node, inbox = await own_rabbitmq(), Inbox()
    assert node._broker is not None
    async with RabbitBroker(node.url(), "test", confirm_seconds=1) as broker:
        await broker.consume(WORK, 10, inbox)
        await eventually(lambda: published(broker, b"1"))
        await (await inbox.take()).ack()
        os.kill(node._broker.pid, signal.SIGSTOP)
        more_than_buffers_take = [Message(WORK, b"x" * LARGEST_BODY_BYTES)] * 20
        assert set(await broker.publish(more_than_buffers_take)) == {Publication.UNKNOWN}
        started = time.monotonic()

    assert time.monotonic() - started < 15
    assert asyncio.all_tasks() == {asyncio.current_task()}  # any other would hold up the end of the loop
    os.kill(node._broker.pid, signal.SIGCONT)
