"""What a measurement reads of the database: its clock, its counters, and what became of tasks.

Nothing here writes, and what is asked while tasks run reads a thousand rows at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from storage.model import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.database import Database

_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"

_SERVER = """
SELECT current_setting('server_version'), current_database(), current_setting('fsync'),
       current_setting('full_page_writes')
"""

# The position of the log and the next transaction are true at once; what pg_stat_* shows, backends have
# reported, which each does once a second while it is busy.
_COUNTERS = """
SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       (SELECT wal_fpi FROM pg_stat_wal)::bigint,
       coalesce(sum(xact_commit) FILTER (WHERE datname <> current_database()), 0)::bigint,
       coalesce(sum(xact_commit + xact_rollback) FILTER (WHERE datname = current_database()), 0)::bigint
FROM pg_stat_database
"""

_RUNNING = "SELECT EXISTS (SELECT FROM tasks WHERE id = ANY($1::uuid[]) AND status < 3)"

# OFFSET 0 keeps the results out of a join, which may read all of them.
_ENDS = """
SELECT t.id, t.status, extract(epoch FROM t.finished_at)::float8, coalesce(r.there, false)
FROM tasks t LEFT JOIN LATERAL (SELECT true AS there FROM results WHERE task_id = t.id OFFSET 0) r ON true
WHERE t.id = ANY($1::uuid[])
"""

_MOMENT = "(lpad(to_hex(floor({}::float8 * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid"

# By the time inside a UUIDv7: over the primary key.
_UNTAGGED = f"""
SELECT count(*)::int FROM payloads
WHERE task_id >= {_MOMENT.format("$1")} AND task_id < {_MOMENT.format("$2")}
AND NOT tags @> ARRAY[$3::text]
"""


class Server(msgspec.Struct, frozen=True):
    """A PostgreSQL, and what of its settings decides how durable, and how dear, a commit is."""

    version: str
    database: str
    fsync: str
    full_page_writes: str


class Counters(msgspec.Struct, frozen=True):
    """How far a server has counted; differences matter.

    `commits` are of transactions that wrote, `transactions` all of this database.
    """

    wal_bytes: int
    commits: int
    full_page_images: int
    commits_elsewhere: int
    transactions: int


class End(msgspec.Struct, frozen=True):
    """Where a task is; `finished_at_seconds` is its end on the database's clock, since 1970."""

    status: Status
    finished_at_seconds: float | None
    has_result: bool


class PostgresMeasurements:
    """`pipeline.bench.ports.Measurements` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def clock_seconds(self) -> float:
        """Read the database's clock, in seconds since 1970."""
        [(seconds,)] = await self._database.fetch(_CLOCK)
        return float(seconds)

    async def server(self) -> Server:
        """Tell what is measured."""
        [row] = await self._database.fetch(_SERVER)
        return Server(*row)

    async def counters(self) -> Counters:
        """Read the counters of the whole server."""
        [row] = await self._database.fetch(_COUNTERS)
        return Counters(*row)

    async def running(self, task_ids: Sequence[UUID]) -> bool:
        """Tell whether any of up to a thousand tasks has not ended."""
        [(running,)] = await self._database.fetch(_RUNNING, [list(task_ids)])
        return bool(running)

    async def ends(self, task_ids: Sequence[UUID]) -> dict[UUID, End]:
        """Tell where up to a thousand tasks are; unknown ids are left out."""
        rows = await self._database.fetch(_ENDS, [list(task_ids)])
        return {UUID(task_id): End(Status(status), at, there) for task_id, status, at, there in rows}

    async def tasks_without(self, tag: str, from_seconds: float, to_seconds: float) -> int:
        """Count the tasks that came between two moments of the database's clock without this tag."""
        [(count,)] = await self._database.fetch(_UNTAGGED, [from_seconds, to_seconds, tag])
        return int(count)
