"""What psqlpy does to its callers does not reach the callers of Database."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from storage.database import Database
from storage.errors import (
    Closed,
    LockTimeout,
    OutcomeUnknown,
    Refused,
    SchemaMismatch,
    StorageError,
    Unavailable,
)
from tests.support.ledgers import address_of, connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support import servers

BACKENDS = "SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'baton'"
NUMERIC_29 = "10::numeric ^ 29"
"""More than the 96 bits that the driver reads."""
SLACK_SECONDS = 0.5


@pytest_asyncio.fixture
async def one(postgres: servers.Database) -> AsyncIterator[Database]:
    """A single connection: what a call leaves behind in it, the next one meets."""
    async with connected(address_of(postgres), timeout_seconds=2.0) as database:
        yield database


@pytest_asyncio.fixture
async def watch(postgres: servers.Database) -> AsyncIterator[Database]:
    """A connection that does not count as one of `baton`."""
    database = Database(address_of(postgres), size=1, application_name="watch")
    yield database
    await database.close()


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT $1::text", ["a\0b"]),
        ("SELECT $1::text[]", [["a\ud800b"]]),
        ("SELECT $1::text::jsonb", ["not json"]),
        ("SELECT $1::text::jsonb", ['"\\u0000"']),
        ("SELECT $1::smallint", [2**15]),
        ("SELECT $1::int[]", [[2**31]]),
        ("SELECT $1::int[]", [[-(2**31) - 1]]),
        ("SELECT $1::bigint", [2**63]),
        ("SELECT $1::bigint", [10**400]),
        ("SELECT $1::text", [5]),
        ("SELECT make_interval(secs => $1::float8)::text", [float("nan")]),
        ("SELECT repeat('x', $1::int)", [2**30]),
        (f"SELECT {NUMERIC_29}", []),
        ("SELECT 'NaN'::numeric", []),
        ("SELECT 'infinity'::timestamptz", []),
        ("SELECT ARRAY['a', NULL]", []),
        ("SELECT (repeat('[', 500) || repeat(']', 500))::jsonb", []),
    ],
)
async def test_data_that_cannot_pass_is_refused(one: Database, sql: str, parameters: list[Any]) -> None:
    with pytest.raises(Refused):
        await one.fetch(sql, parameters)
    assert await one.fetch("SELECT 1") == [(1,)]


@pytest.mark.parametrize("missing", ["1 FROM tasks", "nothing FROM pg_class", "nothing(1)"])
async def test_a_missing_schema_says_what_to_do(one: Database, missing: str) -> None:
    with pytest.raises(SchemaMismatch, match="baton migrate"):
        await one.fetch(f"SELECT {missing}")


async def test_a_statement_is_planned_once(one: Database) -> None:
    # One row is expected of this array, ten of any: left to itself PostgreSQL plans anew for each.
    for number in range(8):
        await one.fetch("SELECT relname FROM pg_class JOIN unnest($1::bigint[]) id ON oid = id", [[number]])
    plans = "SELECT sum(generic_plans)::int, sum(custom_plans)::int FROM pg_prepared_statements"
    [(generic, custom)] = await one.fetch(f"{plans} WHERE statement LIKE 'SELECT relname%'")
    assert (generic, custom) == (8, 0)


async def test_an_error_of_ours_is_none_of_the_data(one: Database) -> None:
    with pytest.raises(StorageError, match="syntax error") as caught:
        await one.fetch("SELEC 1")
    assert type(caught.value) is StorageError


async def test_a_statement_that_takes_too_long_is_stopped_by_the_server(
    one: Database, watch: Database
) -> None:
    started_at = time.monotonic()
    with pytest.raises(Unavailable, match="statement timeout"):
        await one.fetch("SELECT pg_sleep(60)::text")
    assert time.monotonic() - started_at < one.timeout_seconds
    assert await watch.fetch("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'") == []


async def test_a_lock_is_not_waited_for_for_ever(postgres: servers.Database) -> None:
    async with (
        connected(address_of(postgres)) as holder,
        connected(address_of(postgres), timeout_seconds=5.0) as other,
    ):
        await holder.script("CREATE TABLE held (id int PRIMARY KEY); INSERT INTO held VALUES (1)")
        holding = asyncio.create_task(holder.script("UPDATE held SET id = 1; SELECT pg_sleep(4)"))
        await eventually(lambda: other.fetch("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
        with pytest.raises(LockTimeout):
            await other.fetch("UPDATE held SET id = 1 RETURNING 1")
        assert await other.fetch("SELECT 1") == [(1,)]
        await holding


async def test_a_caller_that_finds_no_free_connection_is_told_in_time(one: Database) -> None:
    started_at = time.monotonic()
    calls = [one.fetch("SELECT pg_sleep(60)::text") for _ in range(5)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - started_at < one.timeout_seconds + SLACK_SECONDS
    assert {type(answer) for answer in answers} <= {Unavailable, OutcomeUnknown}
    assert "no database connection free within 2 s" in str(answers[-1])
    assert await one.fetch("SELECT 1") == [(1,)]


async def test_a_cancelled_call_leaves_no_transaction_and_no_answer_to_the_next(
    one: Database, watch: Database
) -> None:
    for number in range(30):
        call = asyncio.create_task(one.fetch("SELECT pg_sleep(0.02)::text, 'wrong'"))
        await asyncio.sleep(number / 1000)
        call.cancel()
        assert await one.fetch("SELECT $1::int", [number]) == [(number,)]
    script = asyncio.create_task(one.script("CREATE TABLE half (); SELECT pg_sleep(1.5)"))
    await asyncio.sleep(0.1)
    script.cancel()
    async with asyncio.timeout(1.0):  # not behind what was left
        assert await one.fetch("SELECT 1") == [(1,)]

    idle = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    assert await watch.fetch(idle) == []
    await eventually(lambda: _counts(watch, BACKENDS, 1))


@pytest.mark.parametrize(
    "broken", ["SELECT 1 FROM missing", "CREATE TABLE n (x int NOT NULL); INSERT INTO n VALUES (NULL)"]
)
async def test_a_script_that_fails_leaves_nothing_and_no_transaction(one: Database, broken: str) -> None:
    with pytest.raises(StorageError):
        await one.script(f"CREATE TABLE half (); {broken}")
    assert await one.fetch("SELECT to_regclass('half')::text") == [(None,)]


async def test_what_waits_for_a_connection_does_not_start_after_the_end(
    postgres: servers.Database, watch: Database
) -> None:
    database = Database(address_of(postgres), size=1)
    calls = [asyncio.create_task(database.fetch("SELECT pg_sleep(0.5)::text")) for _ in range(5)]
    await asyncio.sleep(0.1)

    await database.close()

    assert await watch.fetch(f"{BACKENDS} AND state = 'active'") == [(0,)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[0] == [("",)]
    assert [type(answer) for answer in answers[1:]] == [Closed] * 4
    await eventually(lambda: _counts(watch, BACKENDS, 0))
    with pytest.raises(Closed):
        await database.fetch("SELECT 1")


async def _counts(database: Database, query: str, expected: int) -> bool:
    return await database.fetch(query) == [(expected,)]
