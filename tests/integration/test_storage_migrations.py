"""The schema is brought up to date once, by one runner at a time, whole or not at all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from storage.errors import SchemaMismatch, StorageError
from storage.migrate import LOCK_KEY, check, migrate, pending, shipped
from tests.support.ledgers import address_of, connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage.database import Database
    from tests.support import servers

NAMES = [migration.name for migration in shipped()]
ADVISORY_LOCKS = """SELECT 1 FROM pg_locks JOIN pg_database d ON d.oid = database
                    WHERE locktype = 'advisory' AND datname = current_database()"""


@pytest_asyncio.fixture
async def empty(postgres: servers.Database) -> AsyncIterator[Database]:
    """One connection to a database without any table."""
    async with connected(address_of(postgres)) as database:
        yield database


async def tables(database: Database) -> set[str]:
    rows = await database.fetch("SELECT relname::text FROM pg_stat_user_tables")
    return {name for (name,) in rows}


async def recorded(database: Database) -> list[str]:
    return [name for (name,) in await database.fetch("SELECT name FROM schema_migrations ORDER BY name")]


async def test_an_empty_database_has_everything_pending(empty: Database) -> None:
    assert [migration.name for migration in await pending(empty)] == NAMES
    with pytest.raises(SchemaMismatch, match=r"not yet applied: 0001_ledger.*baton migrate"):
        await check(empty)
    assert await tables(empty) == set()


async def test_from_nothing_everything_is_applied_once(empty: Database) -> None:
    assert await migrate(empty) == NAMES
    await check(empty)
    assert await migrate(empty) == []
    assert await recorded(empty) == NAMES
    assert {"tasks", "payloads", "outbox"} < await tables(empty)


async def test_of_two_runners_at_once_one_applies(postgres: servers.Database, empty: Database) -> None:
    async with AsyncExitStack() as stack:
        runners = [await stack.enter_async_context(connected(address_of(postgres))) for _ in range(4)]
        await asyncio.gather(*(migrate(runner) for runner in runners))
    await check(empty)
    assert await recorded(empty) == NAMES


@pytest.mark.parametrize("seconds", [0.5, 3.5])
async def test_a_second_runner_waits_for_the_first(
    postgres: servers.Database, empty: Database, seconds: float
) -> None:
    async with connected(address_of(postgres)) as first:
        applying = asyncio.create_task(
            first.script(f"SELECT pg_advisory_xact_lock({LOCK_KEY}), pg_sleep({seconds})")
        )
        await eventually(lambda: empty.fetch(f"{ADVISORY_LOCKS} AND granted"))
        async with connected(address_of(postgres)) as second:
            migrating = asyncio.create_task(migrate(second))
            await eventually(lambda: empty.fetch(f"{ADVISORY_LOCKS} AND NOT granted"))
            assert not migrating.done()
            await applying
            assert await migrating == NAMES


async def test_a_database_newer_than_the_code_is_named(empty: Database) -> None:
    await migrate(empty)
    await empty.script("INSERT INTO schema_migrations (name, checksum) VALUES ('9999_later', 'x')")
    for asked in (check, pending, migrate):
        with pytest.raises(SchemaMismatch, match="does not know: 9999_later"):
            await asked(empty)


async def test_a_changed_migration_is_named(empty: Database) -> None:
    await migrate(empty)
    await empty.script("UPDATE schema_migrations SET checksum = 'x' WHERE name = '0001_ledger'")
    for asked in (check, pending, migrate):
        with pytest.raises(SchemaMismatch, match="another text than this code ships: 0001_ledger"):
            await asked(empty)


async def test_a_migration_that_fails_half_way_leaves_nothing(empty: Database) -> None:
    await empty.script("CREATE TABLE audit ()")  # the migration makes this table last

    with pytest.raises(StorageError, match='"audit" already exists'):
        await migrate(empty)

    assert await tables(empty) == {"audit", "schema_migrations"}
    assert await recorded(empty) == []
    await empty.script("DROP TABLE audit")
    assert await migrate(empty) == NAMES
