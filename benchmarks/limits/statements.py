"""The statements of the ledger, run by pgbench: all that PostgreSQL has to do, and nothing else.

They are asked of the very methods that run them, so that they cannot drift from what is shipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeVar
from uuid import UUID

import msgspec

from benchmarks.costs import Cost, Meter
from benchmarks.limits import pgbench
from benchmarks.limits.pgbench import Statement
from benchmarks.workload import BATCH, PAYLOAD, submissions
from gateway.ids import Ids
from pipeline.settings import Settings
from storage.database import Address, Database
from storage.model import Done, Priority, Reference, Run
from storage.outbox import PostgresOutbox
from storage.runs import PostgresRuns
from storage.signals import PostgresSignals
from storage.submissions import PostgresSubmissions

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from benchmarks.scene import Scene, Site

Each = TypeVar("Each")

TASKS = 40_000
LEASE_SECONDS = 30.0
KINDS = ("echo", "sleep", "fail")
WORKER = UUID(int=1)

_BARE = """
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::text[]) AS g(id, kind, priority, payload)
), made AS (
    INSERT INTO tasks (id, kind, priority, max_retries, timeout_seconds)
    SELECT id, kind, priority, 3, 300 FROM given
), kept AS (
    INSERT INTO payloads (task_id, kind, body) SELECT id, kind, convert_to(payload, 'UTF8') FROM given
)
INSERT INTO outbox (task_id, dispatch, priority, route) SELECT id, 1, priority, 'tasks.medium' FROM given
"""


class Speed(msgspec.Struct, frozen=True):
    """Rows a second over all cores at so many rows a call, and what one row costs."""

    rows: int
    per_second: float
    cost: Cost


class Statements(msgspec.Struct, frozen=True):
    """Each step of a task in the database: its way in, poll and settle, claim, verdict; and a bare insert.

    `bare` writes the same rows, task, payload and outbox row, into the same tables, and asks for nothing.
    """

    bare: Speed
    submit: Speed
    relay: Speed
    claim: Speed
    record: Speed


class Caught(Exception):
    """What a method was about to run."""

    def __init__(self, sql: str, parameters: Sequence[object]) -> None:
        super().__init__(sql)
        self.sql = sql
        self.parameters = parameters


class Catching(Database):
    """Stands in for the database, and lets nobody get further than the first statement."""

    def __init__(self) -> None:
        super().__init__(Address(host="", port=0, user="", password="", database=""))

    async def fetch(self, sql: str, parameters: Sequence[object] = ()) -> NoReturn:
        """Throw the statement to whoever wants it."""
        raise Caught(sql, list(parameters))


class Ledger:
    """The repositories of a process on such a database."""

    def __init__(self) -> None:
        database = Catching()
        signals = PostgresSignals(database.address, database)
        self.submissions = PostgresSubmissions(database, signals)
        self.outbox = PostgresOutbox(database, signals)
        self.runs = PostgresRuns(database, signals)


async def statement(calls: Iterable[Coroutine[object, object, object]]) -> Statement:
    """Ask each call for its statement, which is the same for all, and its parameters."""
    caught = [await _caught(call) for call in calls]
    [sql] = {each.sql for each in caught}
    return Statement(sql, [each.parameters for each in caught])


async def _caught(call: Coroutine[object, object, object]) -> Caught:
    try:
        await call
    except Caught as caught:
        return caught
    raise TypeError("a call that runs no statement")


async def measure(site: Site, tasks: int) -> Statements:
    """Take tasks through their life, each step for all of them, at the sizes that the roles use."""
    tasks = min(tasks, TASKS)
    async with site.scene() as scene:
        return await Life(scene, site, tasks).run()


class Life:
    """What happens to the tasks of one database, step by step."""

    def __init__(self, scene: Scene, site: Site, tasks: int) -> None:
        self._scene = scene
        self._site = site
        self._ledger = Ledger()
        ids = Ids()
        self._batches = [submissions(BATCH, ids) for _ in range(tasks // BATCH)]

    async def run(self) -> Statements:
        """Take all steps, in order."""
        shipped = Settings()
        return Statements(
            bare=await self._bare(),
            submit=await self._submit(),
            relay=await self._relay(shipped.outbox_batch_size),
            claim=await self._claim(shipped.worker_concurrency),
            record=await self._record(shipped.worker_concurrency),
        )

    async def _bare(self) -> Speed:
        calls = [
            [
                [each.id for each in batch],
                [each.kind for each in batch],
                [int(each.priority) for each in batch],
                [each.payload for each in batch],
            ]
            for batch in self._batches
        ]
        measured = await self._measured(BATCH, Statement(_BARE, calls))
        await self._scene.fetch("TRUNCATE tasks, payloads, outbox")
        return measured

    async def _submit(self) -> Speed:
        calls = (self._ledger.submissions.submit(batch) for batch in self._batches)
        return await self._measured(BATCH, await statement(calls))

    async def _relay(self, rows: int) -> Speed:
        found = await self._scene.fetch("SELECT id FROM outbox ORDER BY available_at, id")
        ids = _groups([row_id for (row_id,) in found], rows)
        poll = await statement(self._ledger.outbox.poll(rows, LEASE_SECONDS) for _ in ids)
        settle = await statement(self._ledger.outbox.settle([(each, 0.0) for each in group]) for group in ids)
        return await self._measured(rows, poll, settle)

    async def _claim(self, rows: int) -> Speed:
        groups = _groups([run.reference for run in await self._runs(status=1)], rows)
        calls = (self._ledger.runs.claim(group, WORKER, KINDS) for group in groups)
        return await self._measured(rows, await statement(calls))

    async def _record(self, rows: int) -> Speed:
        result = msgspec.json.encode(PAYLOAD).decode()
        groups = _groups(await self._runs(status=2), rows)
        calls = (self._ledger.runs.record([Done(run, result) for run in group]) for group in groups)
        return await self._measured(rows, await statement(calls))

    async def _runs(self, status: int) -> list[Run]:
        rows = await self._scene.fetch("SELECT id FROM tasks WHERE status = $1::int ORDER BY id", status)
        return [_run(Reference(UUID(task_id), 1)) for (task_id,) in rows]

    async def _measured(self, rows: int, *statements: Statement) -> Speed:
        scene = self._scene
        await pgbench.store(scene, statements)
        await scene.fetch("CHECKPOINT")
        meter = await Meter.start(scene.servers)
        ran = await pgbench.run(scene.database, statements, self._site.new_folder())
        done = rows * ran.calls
        return Speed(rows=rows, per_second=round(done / ran.seconds, 1), cost=await meter.read(done))


def _groups(items: Sequence[Each], size: int) -> list[Sequence[Each]]:
    """Divide into groups of that size; what is left over is left out."""
    return [items[start : start + size] for start in range(0, len(items) - size + 1, size)]


def _run(reference: Reference) -> Run:
    """Make what a verdict needs to know of a run."""
    return Run(
        reference=reference,
        kind="echo",
        payload=b"",
        priority=Priority.MEDIUM,
        attempt=1,
        max_retries=3,
        timeout_seconds=300.0,
    )
