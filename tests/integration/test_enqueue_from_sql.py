"""A foreign application hands a task over inside a transaction of its own, by SQL."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psqlpy
import pytest
import pytest_asyncio

from pipeline import roles, service
from pipeline.handlers import load
from pipeline.monitoring import Metrics
from pipeline.settings import Settings
from pipeline.settings.fields import Role
from pipeline.testing import MemoryBroker
from storage.ledger import PostgresLedger
from storage.model import Caller, Priority, Status, TaskFilter
from tests.support.builders import submission
from tests.support.ledgers import connected, migrated
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage.database import Address
    from storage.model import Task
    from tests.support import servers

CALLER = Caller()
ROLES = frozenset({Role.RELAY, Role.WORKER})
SETTINGS = Settings(role=ROLES, worker_concurrency=4, drain_seconds=0.2, outbox_poll_interval=0.1)
FULL = """
    kind => 'sleep', payload => '{"seconds": 0}', priority => 'HIGH', run_at => '2020-01-31 12:00+00',
    timeout_seconds => 1.5, max_retries => 0, tags => ARRAY['a', 'q"\\', 'a'], name => 'a name',
    description => 'ein Satz für später', kind_version => 7
"""
ROWS = """
SELECT to_jsonb(t) - '{id,created_at}'::text[] || to_jsonb(p) - '{task_id}'::text[]
       || to_jsonb(o) - '{id,task_id,created_at,available_at}'::text[]
       || jsonb_build_object('waits', o.available_at > t.created_at,
              'tagged', (SELECT array_agg(tag ORDER BY tag) FROM task_tags WHERE task_id = t.id))
FROM tasks t JOIN payloads p ON p.task_id = t.id JOIN outbox o ON o.task_id = t.id ORDER BY t.id
"""


@pytest_asyncio.fixture
async def address(postgres: servers.Database) -> Address:
    return await migrated(postgres)


@pytest_asyncio.fixture
async def shop(postgres: servers.Database, address: Address) -> AsyncIterator[psqlpy.Connection]:
    """The connection of an application that has a table of its own, and no right but to call."""
    role = f"shop_of_{address.database}"
    connection = await postgres.connect()
    await connection.execute_batch(
        f"""
        CREATE ROLE {role};
        GRANT EXECUTE ON FUNCTION baton_enqueue TO {role};
        CREATE TABLE orders (id int PRIMARY KEY, task_id uuid);
        ALTER TABLE orders OWNER TO {role};
        SET ROLE {role};
        """
    )
    yield connection
    connection.close()
    async with connected(address) as database:
        await database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest_asyncio.fixture
async def ledger(address: Address) -> AsyncIterator[PostgresLedger]:
    async with PostgresLedger(address) as opened:
        yield opened


@asynccontextmanager
async def at_work(ledger: PostgresLedger) -> AsyncIterator[None]:
    """A relay and a worker, with a broker in memory."""
    stop = asyncio.Event()
    async with MemoryBroker() as broker:
        ports = roles.Ports(ledger, broker, Metrics())
        process = service.Process(SETTINGS, ports, load([]), announce=print, stop=stop)
        running = asyncio.create_task(process.run())
        try:
            yield
        finally:
            stop.set()
            await running


async def enqueue(connection: psqlpy.Connection, arguments: str) -> UUID:
    result = await connection.execute(f"SELECT baton_enqueue({arguments}) AS id")
    return UUID(result.result()[0]["id"])


async def becomes(ledger: PostgresLedger, task_id: UUID, status: Status) -> Task:
    async def has() -> Task | None:
        task = await ledger.tasks.get(CALLER, task_id)
        return task if task and task.status is status else None

    task = await eventually(has)
    assert task
    return task


async def tasks(ledger: PostgresLedger) -> list[Task]:
    return (await ledger.tasks.find(CALLER, TaskFilter())).tasks


async def test_a_task_of_a_committed_transaction_runs(
    shop: psqlpy.Connection, ledger: PostgresLedger
) -> None:
    async with at_work(ledger):
        async with shop.transaction() as transaction:
            await transaction.execute(
                """INSERT INTO orders SELECT 17, baton_enqueue('echo', '{"order": 17}')"""
            )
        [row] = (await shop.execute("SELECT task_id FROM orders WHERE id = 17")).result()

        task = await becomes(ledger, UUID(row["task_id"]), Status.COMPLETED)

    assert task.result == b'{"order":17}'


async def test_a_payload_that_does_not_fit_is_found_by_the_first_run(
    shop: psqlpy.Connection, ledger: PostgresLedger
) -> None:
    async with at_work(ledger):
        task = await becomes(ledger, await enqueue(shop, """'sleep', '{"seconds": -1}'"""), Status.FAILED)

    assert (task.attempt, "seconds" in task.errors[0].message) == (1, True)
    [letter] = await ledger.dead_letters.find(CALLER, task_id=task.id, kind=None, before=None, limit=9)
    assert letter.errors == task.errors


async def test_a_kind_that_nobody_serves_waits_for_a_worker_that_does(
    shop: psqlpy.Connection, ledger: PostgresLedger
) -> None:
    async with at_work(ledger):
        task_id = await enqueue(shop, "'nobody.knows'")
        await becomes(ledger, task_id, Status.PENDING)
        [row] = await eventually(lambda: ledger.outbox.find(CALLER, status=None, before=None, limit=9))

    assert row.reference == (task_id, 1)
    assert row.available_at
    assert row.created_at
    assert row.available_at - row.created_at == timedelta(seconds=30)


async def test_a_rolled_back_transaction_leaves_no_task(
    shop: psqlpy.Connection, ledger: PostgresLedger
) -> None:
    await shop.execute("BEGIN")
    await shop.execute("INSERT INTO orders VALUES (17)")
    await enqueue(shop, "'echo', idempotency_key => 'k'")
    await shop.execute("ROLLBACK")

    assert await tasks(ledger) == []
    assert await ledger.outbox.find(CALLER, status=None, before=None, limit=9) == []
    await enqueue(shop, """'echo', '"another"', idempotency_key => 'k'""")


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (FULL, {
            "kind": "sleep", "payload": '{"seconds": 0}', "priority": Priority.HIGH,
            "run_at": datetime(2020, 1, 31, 12, tzinfo=UTC), "timeout_seconds": 1.5, "max_retries": 0,
            "tags": ("a", 'q"\\', "a"), "name": "a name", "description": "ein Satz für später",
            "kind_version": 7,
        }),
        ("'echo', run_at => '2090-01-01 00:00+00'", {
            "payload": "{}", "timeout_seconds": 300.0, "run_at": datetime(2090, 1, 1, tzinfo=UTC)
        }),
        ("""'echo', '"ä€😀"', 'LOW'""", {
            "payload": '"ä€😀"', "timeout_seconds": 300.0, "priority": Priority.LOW
        }),
        ("'echo', null, null, null, null, null, null, null, null, null, null", {
            "payload": "{}", "timeout_seconds": 300.0
        }),
    ],
    ids=["all", "later", "unicode", "null is left out"],
)  # fmt: skip
async def test_it_writes_what_the_gateway_writes(
    shop: psqlpy.Connection, ledger: PostgresLedger, address: Address, arguments: str, fields: dict[str, Any]
) -> None:
    await enqueue(shop, arguments)
    await ledger.submissions.submit([submission(**fields)])

    async with connected(address) as database:
        (by_sql,), (by_gateway,) = await database.fetch(ROWS)

    assert by_sql == by_gateway


async def test_the_defaults_are_those_of_the_settings(
    shop: psqlpy.Connection, ledger: PostgresLedger
) -> None:
    await enqueue(shop, "'echo'")

    [task] = await tasks(ledger)

    assert (task.timeout_seconds, task.max_retries) == (
        Settings().task_timeout_seconds,
        Settings().max_retries,
    )


async def test_ids_are_of_version_7_and_of_their_own_moment(
    shop: psqlpy.Connection, ledger: PostgresLedger
) -> None:
    await shop.execute("BEGIN")
    [begun] = (await shop.execute("SELECT now() AS at, pg_sleep(0.2)::text")).result()
    ids = {await enqueue(shop, "'echo'") for _ in range(20)}
    await shop.execute("COMMIT")

    assert len(ids) == 20
    assert {(each.version, each.variant) for each in ids} == {(7, "specified in RFC 4122")}
    for task in await tasks(ledger):
        assert task.id.int >> 80 == int(task.created_at.timestamp() * 1_000_000) // 1000
        assert task.created_at - begun["at"] > timedelta(seconds=0.2)


@pytest.mark.parametrize(
    ("arguments", "fault", "allowed"),
    [
        ("null", "kind NULL", "words of a-z"),
        ("''", "kind ''", "words of a-z"),
        ("'No.Kind'", "kind 'No.Kind'", "words of a-z"),
        ("'a' || chr(10)", "kind 'a\n'", "words of a-z"),
        ("repeat('k', 101)", "kind 'kkk", "up to 100 characters"),
        ("'k', to_jsonb(repeat('x', 262143))", "payload of 262145 bytes", "up to 262144 bytes"),
        ("'k', priority => 'high'", "priority 'high'", "HIGH, MEDIUM or LOW"),
        ("'k', run_at => 'infinity'", "run_at 'infinity'", "1970 to the year 9998"),
        ("'k', run_at => '1969-12-31 23:59+00'", "run_at '1969-12-31", "1970 to the year 9998"),
        ("'k', timeout_seconds => 0", "timeout_seconds 0", "0.1 to 86400"),
        ("'k', timeout_seconds => 'NaN'", "timeout_seconds NaN", "0.1 to 86400"),
        ("'k', max_retries => 101", "max_retries 101", "0 to 100"),
        ("'k', max_retries => -1", "max_retries -1", "0 to 100"),
        ("'k', tags => ARRAY['']", "tags", "1 to 64 characters"),
        ("'k', tags => ARRAY[null::text]", "tags", "1 to 64 characters"),
        ("'k', tags => array_fill('t'::text, ARRAY[21])", "tags", "up to 20 texts"),
        ("'k', tags => ARRAY[ARRAY['t'], ARRAY['t']]", "tags", "up to 20 texts"),
        ("'k', name => repeat('n', 201)", "name of 201 characters", "up to 200"),
        ("'k', description => repeat('d', 4001)", "description of 4001 characters", "up to 4000"),
        ("'k', idempotency_key => ''", "idempotency_key ''", "1 to 200 visible ASCII"),
        ("'k', idempotency_key => 'a b'", "idempotency_key 'a b'", "1 to 200 visible ASCII"),
        ("'k', idempotency_key => 'é'", "idempotency_key 'é'", "1 to 200 visible ASCII"),
        ("'k', idempotency_key => repeat('k', 201)", "idempotency_key 'kkk", "1 to 200 visible ASCII"),
        ("'k', kind_version => 0", "kind_version 0", "from 1"),
    ],
)
async def test_what_does_not_fit_is_named_with_what_is_allowed(
    shop: psqlpy.Connection, ledger: PostgresLedger, arguments: str, fault: str, allowed: str
) -> None:
    await shop.execute_batch(
        f"""
        CREATE TEMPORARY TABLE told (state text, message text, hint text);
        DO $$ DECLARE hint text; BEGIN
            PERFORM baton_enqueue({arguments});
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
            INSERT INTO told VALUES (SQLSTATE, SQLERRM, hint);
        END $$
        """
    )
    [told] = (await shop.execute("SELECT * FROM told")).result()

    assert told["state"] == "22023"
    assert fault in told["message"]
    assert allowed in told["hint"]
    assert await tasks(ledger) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "repeat('k', 100)",
        "'k', to_jsonb(repeat('x', 262142))",
        "'k', timeout_seconds => 0.1, max_retries => 100, run_at => 'epoch'",
        "'k', timeout_seconds => 86400, run_at => '9998-12-31 23:59+00'",
        "'k', tags => array_fill(repeat('t', 64), ARRAY[20]), name => repeat('n', 200)",
        "'k', description => repeat('d', 4000), idempotency_key => repeat('!~', 100)",
    ],
)
async def test_what_just_fits_is_taken(
    shop: psqlpy.Connection, ledger: PostgresLedger, arguments: str
) -> None:
    task_id = await enqueue(shop, arguments)

    assert [task.id for task in await tasks(ledger)] == [task_id]


class TestIdempotencyKey:
    async def test_a_repeat_returns_the_first_task(
        self, shop: psqlpy.Connection, ledger: PostgresLedger
    ) -> None:
        first = await enqueue(shop, f"{FULL}, idempotency_key => 'k'")
        await shop.execute("SET TimeZone = 'Asia/Tokyo'")

        assert await enqueue(shop, f"{FULL}, idempotency_key => 'k'") == first
        assert len(await tasks(ledger)) == 1
        assert len(await ledger.outbox.find(CALLER, status=None, before=None, limit=9)) == 1

    @pytest.mark.parametrize(
        "other",
        [
            "'fail'", "'echo', '1'", "'echo', priority => 'LOW'", "'echo', run_at => now()",
            "'echo', timeout_seconds => 1", "'echo', max_retries => 1", "'echo', tags => '{t}'",
            "'echo', name => 'n'", "'echo', description => 'd'", "'echo', kind_version => 2",
        ],
    )  # fmt: skip
    async def test_with_other_content_it_raises_and_tells_whose_it_is(
        self, shop: psqlpy.Connection, ledger: PostgresLedger, other: str
    ) -> None:
        first = await enqueue(shop, "'echo', idempotency_key => 'k'")

        with pytest.raises(psqlpy.exceptions.Error, match=f"key k belongs to another request[^$]*{first}"):
            await enqueue(shop, f"{other}, idempotency_key => 'k'")

        assert len(await tasks(ledger)) == 1

    async def test_it_is_shared_with_the_gateway(
        self, shop: psqlpy.Connection, ledger: PostgresLedger
    ) -> None:
        first = submission(key="k", fingerprint="f")
        await ledger.submissions.submit([first])

        with pytest.raises(psqlpy.exceptions.Error, match="belongs to another request"):
            await enqueue(shop, "'echo', idempotency_key => 'k'")

    async def test_of_two_transactions_the_second_waits_for_the_first(
        self, shop: psqlpy.Connection, postgres: servers.Database, address: Address, ledger: PostgresLedger
    ) -> None:
        other = await postgres.connect()
        await shop.execute("BEGIN")
        first = await enqueue(shop, "'echo', idempotency_key => 'k'")
        second = asyncio.create_task(enqueue(other, "'echo', idempotency_key => 'k'"))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'baton_enqueue'"
        async with connected(address) as watch:
            await eventually(lambda: watch.fetch(waiting))

        await shop.execute("COMMIT")

        assert await second == first
        assert len(await tasks(ledger)) == 1
        other.close()


class TestRights:
    async def test_the_application_may_call_and_nothing_else(self, shop: psqlpy.Connection) -> None:
        await enqueue(shop, "'echo'")

        for table in ("tasks", "payloads", "outbox", "idempotency_keys"):
            with pytest.raises(psqlpy.exceptions.Error, match=f"permission denied for table {table}"):
                await shop.execute(f"SELECT * FROM {table}")

    async def test_who_was_granted_nothing_may_not_call(
        self, shop: psqlpy.Connection, address: Address
    ) -> None:
        async with connected(address) as database:
            await database.script(f"REVOKE EXECUTE ON FUNCTION baton_enqueue FROM shop_of_{address.database}")

        with pytest.raises(psqlpy.exceptions.Error, match="permission denied for function"):
            await enqueue(shop, "'echo'")

    async def test_tables_and_paths_of_the_caller_do_not_mislead_it(
        self, shop: psqlpy.Connection, ledger: PostgresLedger
    ) -> None:
        await shop.execute("CREATE TEMPORARY TABLE tasks (id uuid)")
        await shop.execute("SET search_path = pg_temp, public")

        task_id = await enqueue(shop, "'echo'")

        assert [task.id for task in await tasks(ledger)] == [task_id]

    async def test_baton_may_have_a_schema_of_its_own(self, postgres: servers.Database) -> None:
        shop = await postgres.connect()
        await shop.execute("CREATE SCHEMA kept_apart")
        await shop.execute(f"ALTER DATABASE {postgres.database} SET search_path = kept_apart")
        address = await migrated(postgres)
        await shop.execute("CREATE TABLE tasks (id int)")

        [row] = (await shop.execute("SELECT kept_apart.baton_enqueue('echo') AS id")).result()

        async with PostgresLedger(address) as ledger:
            assert [task.id for task in await tasks(ledger)] == [UUID(row["id"])]
        shop.close()
