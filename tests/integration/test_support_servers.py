"""The servers that the other tests stand on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import psqlpy
import pytest

from tests.support.servers import Database, Depth, PostgresServer, RabbitmqError, private_postgres
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika.abc import AbstractChannel
    from pamqp.common import FieldTable

    from tests.support.rabbitmq_node import RabbitmqNode
    from tests.support.servers import OwnPostgres, RabbitmqServer, Vhost

    StartPostgres = Callable[[], Awaitable[OwnPostgres]]
    StartRabbitmq = Callable[[], Awaitable[RabbitmqNode]]

QUORUM: FieldTable = {"x-queue-type": "quorum"}

KILLED_SESSION = """
import asyncio, sys
from pathlib import Path
from tests.support.rabbitmq_node import RabbitmqNode
from tests.support.servers import private_postgres

async def session(folder):
    (folder / "rabbitmq").mkdir()
    node = RabbitmqNode(folder / "rabbitmq")
    async with private_postgres(folder / "postgres"):
        await node.start()
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(session(Path(sys.argv[1])))
"""


async def value(database: Database, query: str) -> object:
    connection = await database.connect()
    try:
        rows = await connection.execute(query)
        return rows.result(as_tuple=True)[0][0]
    finally:
        connection.close()


async def publish(channel: AbstractChannel, queue: str, times: int) -> None:
    for _ in range(times):
        message = aio_pika.Message(b"x", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue)


def processes_of(folder: Path) -> list[int]:
    """Find what was started with `folder` in its environment or arguments, or works below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if os.fsencode(folder) in told or (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


class TestPostgres:
    async def test_databases_are_apart(self, postgres_server: PostgresServer) -> None:
        async with postgres_server.database() as one, postgres_server.database() as other:
            connection = await one.connect()
            await connection.execute("CREATE TABLE mark ()")
            connection.close()
            assert await value(one, "SELECT to_regclass('mark')::text") == "mark"
            assert await value(other, "SELECT to_regclass('mark')::text") is None

    async def test_a_database_is_dropped_whoever_is_connected(self, postgres_server: PostgresServer) -> None:
        async with postgres_server.database() as database:
            connection = await database.connect()
        with pytest.raises(psqlpy.exceptions.BaseConnectionError):
            await connection.execute("SELECT 1")
        there = f"SELECT count(*) FROM pg_database WHERE datname = '{database.database}'"
        assert await value(postgres_server.home, there) == 0

    async def test_a_database_may_be_made_from_another(self, postgres_server: PostgresServer) -> None:
        async with postgres_server.database() as template:
            connection = await template.connect()
            await connection.execute("CREATE TABLE mark ()")
            connection.close()
            async with postgres_server.database(template.database) as copy:
                assert await value(copy, "SELECT to_regclass('mark')::text") == "mark"

    async def test_a_paused_server_answers_when_it_is_resumed(self, own_postgres: StartPostgres) -> None:
        server = await own_postgres()
        connection = await server.home.connect()
        server.pause()
        asked = asyncio.ensure_future(connection.execute("SELECT 1"))
        done, _ = await asyncio.wait({asked}, timeout=0.5)
        assert not done
        server.resume()
        await asyncio.wait_for(asked, 10)
        connection.close()

    async def test_a_killed_server_keeps_what_was_committed(self, own_postgres: StartPostgres) -> None:
        server = await own_postgres()
        connection = await server.home.connect()
        await connection.execute("CREATE TABLE mark AS SELECT 7 AS n")
        await server.kill()
        with pytest.raises(psqlpy.exceptions.BaseConnectionError):
            await connection.execute("SELECT 1")
        await server.start()
        assert await value(server.home, "SELECT n FROM mark") == 7

    def test_a_url_names_a_running_server(self) -> None:
        server = PostgresServer.running("postgresql://me:a%40b@db.example:6543/mine")
        assert server.home == Database("db.example", 6543, "me", "a@b", "mine")


class TestRabbitmq:
    async def test_depths_are_those_of_this_moment(self, rabbitmq: Vhost) -> None:
        async with await aio_pika.connect(rabbitmq.url) as connection:
            channel = await connection.channel()
            quorum = await channel.declare_queue("quorum", durable=True, arguments=QUORUM)
            classic = await channel.declare_queue("classic", exclusive=True)
            await publish(channel, "quorum", 3)
            await publish(channel, "classic", 2)
            assert await rabbitmq.queue_depths() == {"quorum": Depth(3, 0), "classic": Depth(2, 0)}
            held = await quorum.get(), await classic.get()
            assert await rabbitmq.queue_depths() == {"quorum": Depth(2, 1), "classic": Depth(1, 1)}
            for message in held:
                await message.ack()
            rest = {"quorum": Depth(2, 0), "classic": Depth(1, 0)}

            async def acked() -> bool:
                return await rabbitmq.queue_depths() == rest

            await eventually(acked)

    async def test_vhosts_are_apart_and_deleted_afterwards(self, rabbitmq_server: RabbitmqServer) -> None:
        async with rabbitmq_server.vhost() as one, rabbitmq_server.vhost() as other:
            async with await aio_pika.connect(one.url) as connection:
                channel = await connection.channel()
                await channel.declare_queue("mark", exclusive=True)
                assert set(await one.queue_depths()) == {"mark"}
                assert await other.queue_depths() == {}
            assert one.name in (await rabbitmq_server.ctl("list_vhosts")).split()
        await rabbitmq_server.delete_vhosts()
        assert one.name not in (await rabbitmq_server.ctl("list_vhosts")).split()

    async def test_what_the_broker_refuses_is_raised(self, rabbitmq_server: RabbitmqServer) -> None:
        with pytest.raises(RabbitmqError, match="badmatch"):
            await rabbitmq_server.evaluate("ok = no.")
        with pytest.raises(RabbitmqError, match="no_such_command"):
            await rabbitmq_server.ctl("no_such_command")

    async def test_a_killed_broker_keeps_what_it_confirmed(self, own_rabbitmq: StartRabbitmq) -> None:
        broker = await own_rabbitmq()
        async with await aio_pika.connect(broker.url()) as connection:
            channel = await connection.channel()
            await channel.declare_queue("kept", durable=True, arguments=QUORUM)
            await publish(channel, "kept", 2)
            await broker.write_down()
            broker.kill()
        with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
            await aio_pika.connect(broker.url())
        await broker.start()

        async def recovered() -> bool:
            with suppress(RabbitmqError):  # the queue elects its leader a moment after the start
                return await broker.queue_depths() == {"kept": Depth(2, 0)}
            return False

        await eventually(recovered)

    async def test_a_stopped_application_refuses_until_it_is_started(
        self, own_rabbitmq: StartRabbitmq
    ) -> None:
        broker = await own_rabbitmq()
        await broker.stop_app()
        with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
            await aio_pika.connect(broker.url())
        await broker.start_app()
        async with await aio_pika.connect(broker.url()) as connection:
            assert not connection.is_closed


@pytest.mark.usefixtures("make_rabbitmq_node")
async def test_the_servers_end_with_a_killed_session(tmp_path: Path) -> None:
    session = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED_SESSION, str(tmp_path), stdout=subprocess.PIPE
    )
    assert session.stdout
    assert await session.stdout.readline() == b"up\n"
    assert len(processes_of(tmp_path)) > 5
    session.send_signal(signal.SIGKILL)
    await session.wait()
    await eventually(lambda: not processes_of(tmp_path))
    shutil.rmtree(tmp_path / "rabbitmq")
    async with private_postgres(tmp_path / "postgres"):  # takes the folder over, and removes it
        pass


class TestEventually:
    async def test_gives_the_first_truthy_value(self) -> None:
        values = iter((0, "", 3))
        assert await eventually(lambda: next(values)) == 3

    async def test_awaits_an_asynchronous_predicate(self) -> None:
        values = iter((0, 4))

        async def predicate() -> int:
            return next(values)

        assert await eventually(predicate) == 4

    async def test_names_the_last_value_when_time_is_up(self) -> None:
        with pytest.raises(AssertionError, match=r"not within 0\.1 s: .* last gave \[\]"):
            await eventually(list, seconds=0.1)

    async def test_cuts_off_a_predicate_that_hangs(self) -> None:
        with pytest.raises(AssertionError, match=r"not within 0\.1 s"):
            await eventually(asyncio.Event().wait, seconds=0.1)

    async def test_raises_what_the_predicate_raises(self) -> None:
        def predicate() -> int:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            await eventually(predicate)
