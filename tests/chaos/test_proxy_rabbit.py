"""The proxy of the chaos run between the driver and RabbitMQ."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from yarl import URL

from pipeline.broker import BrokerUnavailable, Depth, Message, Publication
from pipeline.broker.rabbit import RabbitBroker
from tests.chaos.harness.amqp_frames import AmqpConversation
from tests.chaos.harness.proxy import Proxy
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.servers import Vhost

WORK = "tasks.high"


@asynccontextmanager
async def broker_through_proxy(
    url: str, confirm_seconds: float = 10.0
) -> AsyncIterator[tuple[Proxy, RabbitBroker]]:
    far = URL(url)
    assert far.host
    assert far.port
    async with Proxy(far.host, far.port, AmqpConversation) as proxy:
        near = str(far.with_host("127.0.0.1").with_port(proxy.port))
        async with RabbitBroker(near, "test", confirm_seconds=confirm_seconds) as broker:
            await broker.ready()
            yield proxy, broker


async def confirmed(broker: RabbitBroker) -> bool:
    try:
        return await broker.publish([Message(WORK, b"again")]) == [Publication.CONFIRMED]
    except BrokerUnavailable:
        return False


async def test_a_swallowed_confirm_leaves_the_message_in_the_queue(rabbitmq: Vhost) -> None:
    async with broker_through_proxy(rabbitmq.url) as (proxy, broker):
        await broker.declare(WORK)
        assert await broker.publish([Message(WORK, b"1")]) == [Publication.CONFIRMED]
        swallowing = asyncio.create_task(proxy.swallow_reply(10.0))
        await asyncio.sleep(0)

        assert await broker.publish([Message(WORK, b"2")]) == [Publication.UNKNOWN]

        swallowed = await swallowing
        assert swallowed is not None
        assert (swallowed.what, swallowed.bytes) == ("basic.ack 2", 21)
        async with RabbitBroker(rabbitmq.url, "watch") as watch:
            assert await watch.depth(WORK) == Depth(2, 0)
        await eventually(lambda: confirmed(broker))


async def test_cut_is_followed_by_new_connections(rabbitmq: Vhost) -> None:
    async with broker_through_proxy(rabbitmq.url) as (proxy, broker):
        await broker.declare(WORK)
        assert proxy.cut() == 1
        await eventually(lambda: confirmed(broker))


async def test_a_black_hole_keeps_confirms_away(rabbitmq: Vhost) -> None:
    async with broker_through_proxy(rabbitmq.url, confirm_seconds=0.5) as (proxy, broker):
        await broker.declare(WORK)
        assert await confirmed(broker)
        async with proxy.black_hole() as effect:
            assert await broker.publish([Message(WORK, b"1")]) == [Publication.UNKNOWN]
            assert effect.connections >= 1
            assert effect.bytes > 0
        await eventually(lambda: confirmed(broker))
