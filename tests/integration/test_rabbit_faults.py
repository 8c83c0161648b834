"""What only RabbitMQ can do to us, short of going away."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aio_pika
import pytest
from structlog.testing import capture_logs

from pipeline.broker import BrokerUnavailable, Depth, Message, Publication, QueueMismatch
from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.topology import DLQ
from tests.support.inbox import Inbox
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel
    from pamqp.common import Arguments
    from structlog.typing import EventDict

    from pipeline.broker import Broker
    from tests.support.servers import RabbitmqServer, Vhost

WORK = "tasks.high"
OTHER: Arguments = {"x-queue-type": "quorum", "x-delivery-limit": 7}


def messages(*numbers: int) -> list[Message]:
    return [Message(WORK, b"%d" % number) for number in numbers]


@asynccontextmanager
async def operator(vhost: Vhost) -> AsyncIterator[AbstractChannel]:
    """Somebody with a client of his own."""
    async with await aio_pika.connect(vhost.url) as connection, connection.channel() as channel:
        yield channel


async def depth_becomes(broker: Broker, queue: str, depth: Depth) -> None:
    async def reached() -> bool:
        return await broker.depth(queue) == depth

    await eventually(reached, 20)


async def test_a_queue_with_other_arguments_is_named_and_disturbs_nothing_else(rabbitmq: Vhost) -> None:
    async with operator(rabbitmq) as channel:
        await channel.declare_queue(WORK, durable=True, arguments=OTHER)
    async with RabbitBroker(rabbitmq.url, "test") as broker:
        await broker.ready()
        publishing = asyncio.create_task(broker.publish(messages(*range(200))))

        with pytest.raises(
            QueueMismatch, match=r"queue tasks\.high exists with other arguments: .*inequivalent arg"
        ):
            await broker.declare(WORK)
        with pytest.raises(
            QueueMismatch, match=r"queue tasks\.high exists with other arguments: .*inequivalent arg"
        ):
            await broker.declare("tasks.high.retry.1s")

        assert set(await publishing) == {Publication.CONFIRMED}
        assert await broker.depth("tasks.high.retry.1s") == Depth(0, 0)


async def test_a_queue_with_other_arguments_is_consumed_all_the_same(rabbitmq: Vhost) -> None:
    inbox = Inbox()
    async with operator(rabbitmq) as channel:
        await channel.declare_queue(WORK, durable=True, arguments=OTHER)
    async with RabbitBroker(rabbitmq.url, "test") as broker:
        with capture_logs() as logs:
            await broker.consume(WORK, 1, inbox)
            await broker.publish(messages(1))

            assert (await inbox.take()).body == b"1"
        complaints = [line for line in logs if line["log_level"] == "error"]
        assert [line["queue"] for line in complaints] == [WORK]


async def test_a_queue_that_refuses_is_told_from_one_that_is_missing(rabbitmq: Vhost) -> None:
    bound: Arguments = {"x-queue-type": "quorum", "x-max-length": 5, "x-overflow": "reject-publish"}
    async with operator(rabbitmq) as channel:
        await channel.declare_queue(WORK, durable=True, arguments=bound)
    async with RabbitBroker(rabbitmq.url, "test") as broker:
        answers = [(await broker.publish([*messages(n), Message(DLQ, b"")])) for n in range(30)]

        assert {second for _, second in answers} == {Publication.RETURNED}
        confirmed = [first for first, _ in answers if first is Publication.CONFIRMED]
        refused = [first for first, _ in answers if first is Publication.REFUSED]
        assert refused
        assert len(confirmed) + len(refused) == 30
        await depth_becomes(broker, WORK, Depth(len(confirmed), 0))


async def test_a_consumer_that_silently_gets_nothing_consumes_anew(rabbitmq: Vhost) -> None:
    inbox = Inbox()
    async with RabbitBroker(rabbitmq.url, "test", watch_seconds=0.2) as broker:
        subscription = await broker.consume(WORK, 1, inbox)
        await depth_becomes(broker, WORK, Depth(0, 1))
        session = subscription._session
        assert session is not None
        # As seen in the wild after restarts: the broker counts a consumer, the client knows of none.
        session.underlay.consumers.clear()  # type: ignore[attr-defined] # on aiormq's class, not its interface

        await broker.publish(messages(1, 2))

        for body in (b"1", b"2"):
            delivery = await inbox.take()
            assert delivery.body == body
            await delivery.ack()
        await depth_becomes(broker, WORK, Depth(0, 1))


async def test_an_idle_consumer_and_a_busy_one_are_left_alone(rabbitmq: Vhost) -> None:
    inbox = Inbox()
    async with RabbitBroker(rabbitmq.url, "test", watch_seconds=0.05) as broker:
        with capture_logs() as logs:
            await broker.consume("tasks.low", 1, Inbox())
            await broker.consume(WORK, 1, inbox)
            await depth_becomes(broker, WORK, Depth(0, 1))
            await broker.publish(messages(1, 2))
            held = await inbox.take()
            await asyncio.sleep(0.5)  # ten rounds of the watch, of which nothing may come
            await held.ack()

            assert (await inbox.take()).body == b"2"
        assert inbox.bodies == [b"1", b"2"]
        assert [line["event"] for line in logs].count("consuming") == 2


async def test_a_channel_that_the_broker_closes_takes_only_itself_along(rabbitmq: Vhost) -> None:
    inbox = Inbox()
    async with RabbitBroker(rabbitmq.url, "test") as broker:
        subscription = await broker.consume(WORK, 1, inbox)
        await broker.declare(WORK)
        await broker.publish(messages(1))
        held = await inbox.take()
        assert subscription._session is not None
        assert broker._channel is not None

        with capture_logs() as logs:
            await subscription._session.underlay.basic_ack(4_711)
            await broker._channel._channel.basic_ack(4_711, wait=False)
            async with asyncio.timeout(5):
                assert await broker.publish(messages(0)) == [Publication.UNKNOWN]
            again = await inbox.take()
            await held.ack()
            await eventually(lambda: confirmed(broker, messages(2)))

        assert again.body == b"1"
        await again.ack()
        assert (await inbox.take()).body == b"2"
        assert [line["event"] for line in logs] == ["consuming"]


async def confirmed(broker: Broker, batch: list[Message]) -> bool:
    return set(await broker.publish(batch)) == {Publication.CONFIRMED}


async def test_each_use_opens_one_connection_and_none_before(rabbitmq: Vhost) -> None:
    async with RabbitBroker(rabbitmq.url, "relay") as relay, RabbitBroker(rabbitmq.url, "worker") as worker:
        assert await connections(rabbitmq) == []
        await worker.consume(WORK, 1, Inbox())
        await eventually(lambda: consuming(worker))
        assert await connections(rabbitmq) == ["worker consume"]

        await asyncio.gather(*(relay.publish(messages(n)) for n in range(5)))
        assert await relay.depth(WORK) is not None
        assert await connections(rabbitmq) == ["relay publish", "worker consume"]
    assert await connections(rabbitmq) == []


async def consuming(broker: Broker) -> bool:
    counted = await broker.depth(WORK)
    return counted is not None and counted.consumers == 1


async def connections(vhost: Vhost) -> list[str]:
    printed = await vhost.server.ctl("list_connections", "vhost", "client_properties")
    lines = [line for line in printed.splitlines() if line.startswith(vhost.name)]
    return sorted(line.split('{"connection_name","')[1].split('"')[0] for line in lines)


async def test_a_wrong_password_is_told_once_and_tried_again_until_it_is_right(rabbitmq: Vhost) -> None:
    user, password = f"user-{secrets.token_hex(4)}", f"secret-{secrets.token_hex(8)}"
    server = rabbitmq.server
    url = f"amqp://{user}:{password}@{server.url().split('@')[1].rsplit('/', 1)[0]}/{rabbitmq.name}"
    await server.ctl("add_user", user, "another")
    try:
        with capture_logs() as logs:
            async with RabbitBroker(url, "test") as broker:
                with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED"):
                    await broker.publish(messages(1))
                await give_right_password(server, rabbitmq.name, user, password)
                await asyncio.wait_for(broker.ready(), 20)
    finally:
        await server.ctl("delete_user", user)

    told = [line for line in logs if line["log_level"] == "error"]
    assert [line["event"] for line in told] == ["broker unreachable, trying on"]
    assert "ACCESS_REFUSED" in told[0]["error"]
    assert f"{user}@" in told[0]["server"]
    assert not [line for line in logs if password in str(line)]


async def give_right_password(server: RabbitmqServer, vhost: str, user: str, password: str) -> None:
    await server.ctl("set_permissions", "-p", vhost, user, ".*", ".*", ".*")
    await server.ctl("change_password", user, password)


async def test_a_server_that_is_no_broker_is_one_more_that_is_unreachable() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with capture_logs() as logs:
            async with RabbitBroker(f"amqp://guest:guest@127.0.0.1:{port}/", "test") as broker:
                with pytest.raises(BrokerUnavailable):
                    await broker.publish(messages(1))
        assert events(logs) == ["broker unreachable, trying on"]


async def test_a_server_that_accepts_and_says_nothing_does_not_hold_up_closing() -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with (
            asyncio.timeout(10),
            RabbitBroker(f"amqp://127.0.0.1:{port}/", "test", confirm_seconds=0.5) as broker,
        ):
            await broker.consume(WORK, 1, Inbox())
            with pytest.raises(BrokerUnavailable, match="no answer"):
                await broker.publish(messages(1))


def test_a_url_that_is_none_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="amqp") as refused:
        RabbitBroker("amqp://user:pass#word@host:port/", "test")
    assert "pass" not in str(refused.value).replace("user:password@", "")


async def test_a_closed_broker_says_so() -> None:
    async with RabbitBroker("amqp://127.0.0.1:1/", "test") as broker:
        pass

    for call in (broker.publish(messages(1)), broker.consume(WORK, 1, Inbox()), broker.ready()):
        with pytest.raises(BrokerUnavailable, match="closed"):
            await call


def events(logs: list[EventDict]) -> list[str]:
    return [line["event"] for line in logs]
