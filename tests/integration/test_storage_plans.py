"""No everyday statement reads more than it must, whatever the planner knows about the tables.

Pages are counted and not seconds: they are the same on a busy machine. 300,000 tasks have ended, 50,000 wait,
100,000 rows are in the outbox; each statement is planned with and without its parameters in sight, before and
after ANALYZE, on a fresh connection.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import pytest_asyncio

from storage.dead_letters import PostgresDeadLetters
from storage.errors import Unavailable
from storage.model import Caller, OutboxStatus, Priority, Reference, Status, TaskFilter
from storage.outbox import PostgresOutbox
from storage.runs import PostgresRuns
from storage.submissions import PostgresSubmissions
from storage.tasks import PostgresTasks
from storage.upkeep import PostgresUpkeep
from storage.workers import PostgresWorkers
from tests.support.builders import beat, dead, done, retry, run, submission
from tests.support.ledgers import connected, migrated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from storage.database import Address, Row
    from tests.support.servers import PostgresServer

    Ask = Callable[[Any], Awaitable[object]]

# One task every 100 ms. The first 300,000 have ended. Of the next, the even ones are NEW with a row that is
# due; every fourth is at the broker, every other fourth waits for its retry. The last 400 run. Each has the
# tag "all", and the first ten a kind and a tag of their own.
# One queue is paused, with a third of all rows.
LOAD = """
CREATE FUNCTION task(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE RETURN
    (lpad(to_hex(1700000000000 + n * 100), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid;
CREATE FUNCTION moment(n bigint) RETURNS timestamptz LANGUAGE sql RETURN to_timestamp(1700000000 + n / 10.0);
CREATE FUNCTION worker(n bigint) RETURNS uuid LANGUAGE sql RETURN
    ('00000000-0000-4000-8000-' || lpad((n % 4)::text, 12, '0'))::uuid;
INSERT INTO tasks (id, kind, priority, status, reason, max_retries, timeout_seconds, created_at, finished_at)
    SELECT task(n), CASE WHEN n > 10 THEN 'echo' ELSE 'rare' END, 1 + n % 3,
           CASE WHEN n % 30 = 0 THEN 5 WHEN n % 15 = 0 THEN 4 ELSE 3 END,
           CASE WHEN n % 30 = 15 THEN 'error' END, 3, 30, moment(n), moment(n)
    FROM generate_series(1, 300000) n;
INSERT INTO tasks (id, kind, priority, status, max_retries, timeout_seconds, created_at, queued_at)
    SELECT task(n), 'echo', 1 + n % 3, n % 2, 3, 30, moment(n), CASE WHEN n % 4 = 1 THEN moment(n) END
    FROM generate_series(300001, 350000) n;
INSERT INTO tasks (id, kind, priority, status, max_retries, timeout_seconds, started_at, worker_id)
    SELECT task(n), 'echo', 1 + n % 3, 2, 3, 30, now(), worker(n) FROM generate_series(350001, 350400) n;
INSERT INTO workers (id, queues, slots, running, free, unclaimed, claimed_through, dead_at)
    SELECT worker(n), '{tasks.high}', 100, 100, 0, 0, '{}', CASE WHEN n = 0 THEN now() END
    FROM generate_series(0, 3) n;
INSERT INTO payloads (task_id, kind, tags, body)
    SELECT id, kind, CASE kind WHEN 'rare' THEN '{all,few}'::text[] ELSE '{all}' END, '{}' FROM tasks;
INSERT INTO task_tags (tag, task_id) SELECT unnest(tags), task_id FROM payloads;
INSERT INTO results (task_id, body) SELECT id, 'null' FROM tasks WHERE status = 3;
INSERT INTO outbox (task_id, dispatch, priority, route)
    SELECT task(300000 + 2 * n), 1, 1 + 2 * n % 3, 'tasks.low' FROM generate_series(1, 25000) n;
INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
    SELECT task(300003 + 4 * (n % 12500)), 1, 1 + n % 3, 'tasks.low', now() + interval '1 hour'
    FROM generate_series(1, 75000) n;
INSERT INTO outbox (task_id, dispatch, priority, route, status)
    SELECT task(15 + 30 * n), 1, 1, 'tasks.low', 1 FROM generate_series(1, 100) n;
UPDATE queues SET paused = true WHERE name = 'tasks.low';
INSERT INTO dead_letters (task_id, dispatch, kind, reason)
    SELECT id, 1, kind, reason FROM tasks WHERE status = 4;
INSERT INTO audit (action, task_id, dispatch, reason) SELECT 'replay', id, 1, '' FROM tasks WHERE status = 5;
INSERT INTO idempotency_keys (tenant, key, fingerprint, task_ids, created_at)
    SELECT '', md5(n::text), '', ARRAY[task(n)], moment(n) FROM generate_series(1, 100000) n;
"""


def task(number: int) -> UUID:
    return UUID(f"{1_700_000_000_000 + number * 100:012x}70008000{number:012x}")


CALLER = Caller()
WORKER_ID = UUID("00000000-0000-4000-8000-000000000001")
AT_THE_BROKER = [Reference(task(300_001 + 4 * number), 1) for number in range(100)]
RUNNING = [run(task_id=task(350_001 + number)) for number in range(100)]
VERDICTS = [(done, dead, retry)[number % 3](one) for number, one in enumerate(RUNNING)]
ROWS = list(range(1, 101))
HOUR, YEARS = 3600.0, 1e9
MOMENT = datetime.fromtimestamp(1_700_034_000, UTC)
SECOND_LATER = MOMENT + timedelta(seconds=1)
SOONER = datetime.fromtimestamp(1_700_015_000, UTC)
DECADES_LATER = datetime.fromtimestamp(3_000_000_000, UTC)


def find(**fields: Any) -> Ask:
    return lambda hands: hands.tasks.find(CALLER, TaskFilter(**fields))


def rows_listed(status: OutboxStatus | None) -> Ask:
    return lambda hands: hands.outbox.find(CALLER, status=status, before=None, limit=50)


# What is asked, and how many pages it may take; a group is of 100, a list of 50. Each entry that a list looks
# at, of 10,000 at most, may take four pages.
CASES: dict[str, tuple[int, Ask]] = {
    "submit": (3000, lambda hands: hands.submissions.submit([submission(tags=("a",)) for _ in range(100)])),
    "submit plain": (3000, lambda hands: hands.submissions.submit([submission() for _ in range(100)])),
    "submit with keys": (
        4000,
        lambda hands: hands.submissions.submit([submission(key=f"k{n}") for n in range(100)]),
    ),
    "repeated": (1000, lambda hands: hands.submissions.repeated([submission(key="k") for _ in range(100)])),
    "waiting": (500, lambda hands: hands.submissions.waiting(100)),
    "get": (50, lambda hands: hands.tasks.get(CALLER, task(1000))),
    "find": (500, find()),
    "find a page": (500, find(before=task(150_000))),
    "find completed": (500, find(status=Status.COMPLETED)),  # behind the 50,000 that wait
    "find failed": (500, find(status=Status.FAILED)),
    "find a page of failed": (500, find(status=Status.FAILED, before=task(150_000))),
    "find new": (500, find(status=Status.NEW)),
    "find running": (500, find(status=Status.IN_PROGRESS)),
    "find one priority": (500, find(priority=Priority.HIGH)),
    "find a kind": (1000, find(kind="echo")),
    "find a page of a kind": (1000, find(kind="echo", before=task(150_000))),
    "find a rare kind": (200, find(kind="rare")),
    "find a kind that is none": (50, find(kind="none")),
    "find a tag": (1000, find(tag="all")),
    "find a page of a tag": (1000, find(tag="all", before=task(150_000))),
    "find a rare tag": (200, find(tag="few")),
    "find a tag that is none": (50, find(tag="none")),
    "find a range": (500, find(created_from=MOMENT, created_to=MOMENT + timedelta(minutes=1))),
    "find an empty range": (50, find(created_from=DECADES_LATER)),
    "find nothing before": (50, find(created_to=DECADES_LATER, before=task(0))),
    "find a kind in a range": (1000, find(kind="echo", created_from=MOMENT, created_to=DECADES_LATER)),
    "find a kind in a second": (6000, find(kind="echo", created_from=MOMENT, created_to=SECOND_LATER)),
    "find a tag in a second": (5000, find(tag="all", created_from=MOMENT, created_to=SECOND_LATER)),
    "find failed in a second": (
        1000,
        find(status=Status.FAILED, created_from=SOONER, created_to=SOONER + timedelta(seconds=1)),
    ),
    "find a tag in an empty range": (500, find(tag="all", created_from=DECADES_LATER)),
    "find failed in an empty range": (500, find(status=Status.FAILED, created_from=DECADES_LATER)),
    "find completed of a rare kind": (200, find(status=Status.COMPLETED, kind="rare")),
    "find completed of a kind": (45_000, find(status=Status.COMPLETED, kind="echo")),
    "find failed of a rare kind": (12_000, find(status=Status.FAILED, kind="rare")),
    "find failed with a tag": (45_000, find(status=Status.FAILED, tag="all")),
    "find failed with a rare tag": (200, find(status=Status.FAILED, tag="few")),
    "get many": (9000, lambda hands: hands.tasks.get_many(CALLER, [task(300 * n) for n in range(1, 1001)])),
    "statuses": (500, lambda hands: hands.tasks.statuses([task(3000 * n) for n in range(1, 101)])),
    "ended": (2000, lambda hands: hands.tasks.ended([task(3000 * n) for n in range(1, 101)], 100)),
    "cancel": (50, lambda hands: hands.tasks.cancel(CALLER, task(300_002))),
    "replay": (300, lambda hands: hands.tasks.replay(CALLER, task(45), 1, "")),
    # Before PostgreSQL 17 an index is descended once for each of the 100 rows. The outbox has 2,000 pages.
    "poll": (1000, lambda hands: hands.outbox.poll(100, 30.0)),
    "settle": (4000, lambda hands: hands.outbox.settle([(row, 0.0) for row in ROWS])),
    "release rows": (4000, lambda hands: hands.outbox.release(ROWS, 1.0)),
    "returned": (4000, lambda hands: hands.outbox.returned(ROWS, "", 1, 1.0)),
    "list rows": (500, rows_listed(None)),
    "list waiting rows": (500, rows_listed(OutboxStatus.WAITING)),
    "list failed rows": (500, rows_listed(OutboxStatus.FAILED)),
    "retry a row": (100, lambda hands: hands.outbox.retry(CALLER, 100_001)),
    "capacity": (50, lambda hands: hands.outbox.capacity()),
    "claim": (4000, lambda hands: hands.runs.claim(AT_THE_BROKER, WORKER_ID, ["echo"])),
    "complete": (4000, lambda hands: hands.runs.record([done(one) for one in RUNNING])),
    "record": (4000, lambda hands: hands.runs.record(VERDICTS)),
    "hand back": (3000, lambda hands: hands.runs.hand_back(AT_THE_BROKER, 1.0)),
    "held by": (200, lambda hands: hands.workers.held_by(WORKER_ID)),
    "release runs": (3000, lambda hands: hands.runs.release([one.reference for one in RUNNING], WORKER_ID)),
    "rescue": (4000, lambda hands: hands.upkeep.rescue(100, 30.0)),
    "resend": (3000, lambda hands: hands.upkeep.resend(Priority.LOW, None, 100, 1.0)),
    "resend overtaken": (3000, lambda hands: hands.upkeep.resend(Priority.LOW, MOMENT, 100, 1.0)),
    "backlog": (500, lambda hands: hands.upkeep.backlog(100)),
    "prune": (2000, lambda hands: hands.upkeep.prune(HOUR, HOUR, 100)),
    "prune nothing": (50, lambda hands: hands.upkeep.prune(YEARS, YEARS, 100)),
    "beat": (50, lambda hands: hands.workers.beat(beat(WORKER_ID))),
    "declare dead": (50, lambda hands: hands.workers.declare_dead(30.0)),
    "bury": (1000, lambda hands: hands.dead_letters.bury([Reference(task(15 + 30 * n), 1) for n in ROWS])),
    "list dead letters": (
        500,
        lambda hands: hands.dead_letters.find(CALLER, task_id=None, kind="echo", before=5000, limit=50),
    ),
}


class Recorder:
    """Stands for the database, finds nothing but the time, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Sequence[Any]]] = []

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        self.asked.append((sql, parameters))
        return [(datetime.now(UTC),)] if sql == "SELECT now()" else []


async def statements(ask: Ask) -> list[tuple[str, Sequence[Any]]]:
    recorder = Recorder()
    hands: Any = recorder, None
    with suppress(KeyError, ValueError):  # a submission that is not found again; no number
        await ask(
            SimpleNamespace(
                submissions=PostgresSubmissions(*hands),
                tasks=PostgresTasks(*hands),
                outbox=PostgresOutbox(*hands),
                runs=PostgresRuns(*hands),
                upkeep=PostgresUpkeep(*hands),
                workers=PostgresWorkers(hands[0]),
                dead_letters=PostgresDeadLetters(*hands),
            )
        )
    return recorder.asked


def literal(value: object) -> str:
    """A parameter as it stands in SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        value = "{" + ",".join("NULL" if one is None else f'"{_escaped(one)}"' for one in value) + "}"
    return "'" + str(_plain(value)).replace("'", "''") + "'"


def _escaped(value: object) -> str:
    return str(_plain(value)).replace("\\", "\\\\").replace('"', '\\"')


def _plain(value: object) -> object:
    return int(value) if isinstance(value, int) else value  # and not the name of an enumeration's member


def pages(plan: dict[str, Any]) -> int:
    """Pages touched; a part that nothing waits for is not counted in the whole, hence the maximum."""
    own: int = plan.get("Shared Hit Blocks", 0) + plan.get("Shared Read Blocks", 0)
    return max([own, *(pages(part) for part in plan.get("Plans", []))])


async def pages_of(address: Address, sql: str, parameters: Sequence[Any], mode: str) -> int:
    """Carry a statement out for nothing on a fresh connection; the pages it touched."""
    given = f"({', '.join(literal(value) for value in parameters)})" if parameters else ""
    async with connected(address, timeout_seconds=2.0) as database:
        await database.fetch(f"SET plan_cache_mode = force_{mode}_plan")
        await database.fetch("BEGIN")
        await database.fetch(f"PREPARE asked AS {sql}")
        try:
            [(plan,)] = await database.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked{given}")
        except Unavailable:  # more than two seconds
            return 1_000_000
        return pages(plan[0]["Plan"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def measured(postgres_server: PostgresServer) -> AsyncIterator[dict[str, dict[str, int]]]:
    """The pages of each case by what the planner knew."""
    found: dict[str, dict[str, int]] = {name: {} for name in CASES}
    async with postgres_server.database() as lent:
        address = await migrated(lent)
        async with connected(address, timeout_seconds=60.0) as database:
            await database.script(LOAD)
            for state in ("not analyzed", "analyzed"):
                for mode in ("custom", "generic"):
                    for name, (_, ask) in CASES.items():
                        asked = await statements(ask)
                        counts = [await pages_of(address, *statement, mode) for statement in asked]
                        found[name][f"{state}, {mode} plan"] = max(counts)
                await database.script("ANALYZE")
        yield found


@pytest.mark.parametrize("name", CASES)
def test_a_statement_reads_what_it_must(measured: dict[str, dict[str, int]], name: str) -> None:
    most, _ = CASES[name]
    assert {known: count for known, count in measured[name].items() if count > most} == {}
