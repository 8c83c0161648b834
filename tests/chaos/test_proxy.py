"""The proxy of the chaos run between the driver and PostgreSQL."""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import psqlpy
import pytest

from storage.channels import DONE
from storage.errors import OutcomeUnknown, Unavailable
from storage.ledger import PostgresLedger
from tests.chaos.harness.postgres_frames import PostgresConversation
from tests.chaos.harness.proxy import Proxy
from tests.support.builders import submission
from tests.support.ledgers import address_of, connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from storage.database import Address, Database
    from tests.support import servers

    StartPostgres = Callable[[], Awaitable[servers.OwnPostgres]]

TABLE = "CREATE TABLE noted (what text PRIMARY KEY)"
NOTE = "INSERT INTO noted VALUES ($1) ON CONFLICT DO NOTHING RETURNING 1"
NOTED = "SELECT what FROM noted ORDER BY what"
WITH_CTE = (
    "WITH made AS (INSERT INTO noted VALUES ($1) ON CONFLICT DO NOTHING RETURNING what) SELECT what FROM made"
)


@asynccontextmanager
async def through_proxy(
    address: Address, *, size: int = 1, timeout_seconds: float = 10.0
) -> AsyncIterator[tuple[Proxy, Database]]:
    async with Proxy(address.host, address.port, PostgresConversation) as proxy:
        near = msgspec.structs.replace(address, host="127.0.0.1", port=proxy.port)
        async with connected(near, size=size, timeout_seconds=timeout_seconds) as database:
            yield proxy, database


SSL_REQUEST, CANCEL_REQUEST = 80877103, 80877102


def query(sql: str) -> bytes:
    return b"Q" + struct.pack(">I", len(sql) + 5) + sql.encode() + b"\0"


async def left(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def message(reader: asyncio.StreamReader, wanted: bytes) -> bytes:
    """The next message of a kind; what comes before it is left out."""
    while True:
        kind, size = struct.unpack(">cI", await reader.readexactly(5))
        body = await reader.readexactly(size - 4)
        if kind == wanted:
            return body


def note(what: str) -> str:
    return f"INSERT INTO noted VALUES ('{what}')"


async def noted(address: Address) -> list[str]:
    async with connected(address) as database:
        return [what for (what,) in await database.fetch(NOTED)]


async def test_the_whole_service_talks_through_it(ledger_database: Address) -> None:
    async with Proxy(ledger_database.host, ledger_database.port, PostgresConversation) as proxy:
        near = msgspec.structs.replace(ledger_database, host="127.0.0.1", port=proxy.port)
        async with PostgresLedger(near) as ledger, ledger.signals.subscribe(DONE) as subscriber:
            await subscriber.wait(10.0)  # the first wake-up says that it listens
            assert len(await ledger.submissions.submit([submission() for _ in range(100)])) == 100
            ledger.signals.notify(DONE)
            async with asyncio.timeout(5.0):
                await subscriber.wait(60.0)
            assert proxy.connections >= 2
        await eventually(lambda: proxy.connections == 0)


async def test_a_swallowed_reply_leaves_the_outcome_unknown_and_the_row_there(
    postgres: servers.Database,
) -> None:
    async with through_proxy(address_of(postgres)) as (proxy, database):
        await database.script(TABLE)
        swallowing = asyncio.create_task(proxy.swallow_reply(10.0))
        await asyncio.sleep(0)

        with pytest.raises(OutcomeUnknown):
            await database.script(note("once"))

        swallowed = await swallowing
        assert swallowed is not None
        assert swallowed.what == "CommandComplete INSERT 0 1"
        assert swallowed.bytes >= len(b"C....INSERT 0 1.Z.....")
        assert await noted(address_of(postgres)) == ["once"]
        assert proxy.connections == 0


@pytest.mark.parametrize("statement", [NOTE, WITH_CTE])
async def test_a_statement_repeated_after_a_swallowed_reply_finds_its_own_row(
    postgres: servers.Database, statement: str
) -> None:
    async with through_proxy(address_of(postgres)) as (proxy, database):
        await database.script(TABLE)
        assert len(await database.fetch(statement, ["first"])) == 1  # prepared before the wish
        swallowing = asyncio.create_task(proxy.swallow_reply(10.0))
        await asyncio.sleep(0)

        assert await database.fetch(NOTED) == [("first",)]  # says nothing of the kind
        assert await database.fetch(statement, ["first"]) == []  # nor does this
        assert not swallowing.done()
        assert await database.fetch(statement, ["second"]) == []

        swallowed = await swallowing
        assert swallowed is not None
        assert swallowed.what.startswith("CommandComplete")
        assert await database.fetch(NOTED) == [("first",), ("second",)]


async def test_a_reply_inside_a_transaction_waits_for_the_commit(postgres: servers.Database) -> None:
    async with through_proxy(address_of(postgres)) as (proxy, database):
        await database.script(TABLE)
        swallowing = asyncio.create_task(proxy.swallow_reply(10.0))
        near = msgspec.structs.replace(postgres, host="127.0.0.1", port=proxy.port)
        connection = await near.connect()

        await connection.execute("BEGIN")
        await connection.execute(note("rolled back"))
        await connection.execute("ROLLBACK")
        await connection.execute("BEGIN")
        await connection.execute(note("committed"))
        assert not swallowing.done()
        with pytest.raises(psqlpy.exceptions.Error):
            await connection.execute("COMMIT")

        swallowed = await swallowing
        assert swallowed is not None
        assert swallowed.what == "CommandComplete COMMIT"
        assert await noted(address_of(postgres)) == ["committed"]


async def test_what_is_undone_by_a_later_error_is_told(postgres: servers.Database) -> None:
    async with through_proxy(address_of(postgres)) as (proxy, database):
        await database.script(TABLE)
        swallowing = asyncio.create_task(proxy.swallow_reply(10.0))
        near = msgspec.structs.replace(postgres, host="127.0.0.1", port=proxy.port)
        connection = await near.connect()

        with pytest.raises(psqlpy.exceptions.Error, match="division by zero"):
            await connection.execute_batch(f"{note('undone')}; SELECT 1/0")

        assert not swallowing.done()
        swallowing.cancel()
        assert await noted(address_of(postgres)) == []


async def test_nothing_is_swallowed_where_nothing_was_done(postgres: servers.Database) -> None:
    async with through_proxy(address_of(postgres)) as (proxy, database):
        await database.script(TABLE)
        swallowing = asyncio.create_task(proxy.swallow_reply(0.2))
        while not swallowing.done():
            await database.fetch("SELECT 1")
        assert await swallowing is None
        await database.script(note("later"))
        assert proxy.connections == 1


async def test_two_wishes_swallow_two_replies(postgres: servers.Database) -> None:
    async with through_proxy(address_of(postgres)) as (proxy, database):
        await database.script(TABLE)
        swallowing = asyncio.gather(proxy.swallow_reply(10.0), proxy.swallow_reply(10.0))
        await asyncio.sleep(0)
        for what in ("one", "two"):
            with pytest.raises(OutcomeUnknown):
                await database.script(note(what))
        await database.script(note("three"))
        assert None not in await swallowing
        assert await database.fetch(NOTED) == [("one",), ("three",), ("two",)]


async def test_cut_resets_every_connection(postgres: servers.Database) -> None:
    async with through_proxy(address_of(postgres), size=4) as (proxy, database):
        await asyncio.gather(*(database.fetch("SELECT 1") for _ in range(4)))
        sleeping = [asyncio.create_task(database.fetch("SELECT pg_sleep(60)::text")) for _ in range(4)]
        async with connected(address_of(postgres)) as watch:
            asleep = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"

            async def all_asleep() -> bool:
                return len(await watch.fetch(asleep)) == 4

            await eventually(all_asleep)
        assert proxy.cut() == 4
        assert proxy.connections == 0
        assert proxy.cut() == 0
        for call in sleeping:
            call.cancel()
        assert await database.fetch("SELECT 1") == [(1,)]


async def test_a_black_hole_lasts_as_long_as_it_is_open(postgres: servers.Database) -> None:
    async with through_proxy(address_of(postgres), timeout_seconds=0.5) as (proxy, database):
        assert await database.fetch("SELECT 1") == [(1,)]
        async with proxy.black_hole() as effect:
            with pytest.raises((OutcomeUnknown, Unavailable)):
                await database.fetch("SELECT 1")
            with pytest.raises(Unavailable):  # on a connection that is accepted and not answered
                await database.fetch("SELECT 1")
            assert effect.chunks >= 1
            assert effect.bytes > 0
            assert effect.connections == proxy.connections >= 2
        assert proxy.connections == 0
        assert await database.fetch("SELECT 1") == [(1,)]


async def test_the_port_outlives_the_server(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    async with through_proxy(address_of(server.home)) as (proxy, database):
        assert await database.fetch("SELECT 1") == [(1,)]
        port = proxy.port
        await server.kill()
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await database.fetch("SELECT 1")
        assert proxy.connections == 0
        await server.start()
        assert await database.fetch("SELECT 1") == [(1,)]
        assert proxy.port == port


async def test_encryption_is_negotiated_and_a_statement_cancelled(own_postgres: StartPostgres) -> None:
    postgres = (await own_postgres()).home  # which asks nobody for a password
    async with Proxy(postgres.host, postgres.port, PostgresConversation) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(struct.pack(">II", 8, SSL_REQUEST))
        assert await reader.readexactly(1) == b"N"
        names = f"user\0{postgres.user}\0database\0{postgres.database}\0\0".encode()
        writer.write(struct.pack(">II", 8 + len(names), 3 << 16) + names)
        key = await message(reader, b"K")
        await message(reader, b"Z")
        writer.write(query("SELECT pg_sleep(60)"))
        cancelling = struct.pack(">II", 16, CANCEL_REQUEST) + key

        async def cancelled() -> bytes:
            while True:  # the statement may not have begun when the request comes
                _, canceller = await asyncio.open_connection("127.0.0.1", proxy.port)
                canceller.write(cancelling)
                await left(canceller)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        return await message(reader, b"E")

        assert b"user request" in await cancelled()
        await message(reader, b"Z")
        writer.write(query("CREATE TABLE noted (what text)"))
        swallowing = asyncio.create_task(proxy.swallow_reply(10.0))
        writer.write(query("INSERT INTO noted VALUES ('1'), ('2')"))
        swallowed = await swallowing
        assert swallowed is not None
        assert swallowed.what == "CommandComplete INSERT 0 2"
        await left(writer)
