"""Liveness: who is at work, by the database's clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import UUID

from storage.model import Disconnected, Holding, Reference

if TYPE_CHECKING:
    from collections.abc import Collection

    from storage.database import Database, Row
    from storage.model import Heartbeat

_BEAT = """
INSERT INTO workers AS w (id, queues, slots, running, free, unclaimed, claimed_through, backend_pid,
                          last_seen)
VALUES ($1, $2::text[], $3::int, $4::int, $5::int, $6::int, $7::timestamptz[], pg_backend_pid(),
        clock_timestamp())
ON CONFLICT (id) DO UPDATE SET queues = excluded.queues, slots = excluded.slots, running = excluded.running,
    free = excluded.free, unclaimed = excluded.unclaimed, claimed_through = excluded.claimed_through,
    backend_pid = excluded.backend_pid, last_seen = clock_timestamp()
WHERE w.dead_at IS NULL RETURNING 1
"""

_HELD_BY = "SELECT id, dispatch, cancel_requested FROM tasks WHERE worker_id = $1"

_CLOSE = "DELETE FROM workers WHERE id = $1 RETURNING 1"

# When a process dies its sockets close, and the backend that served it ends at once. Every role may see which
# backends there are, and when those of its own began (the function lists all where backend_pid is null).
# Where all of these are younger than a worker's last beat, the server was started again, or a sweep has ended
# them all: that says nothing about the worker.
_DISCONNECTED = """
SELECT id, last_seen FROM workers
WHERE dead_at IS NULL AND NOT EXISTS (SELECT FROM pg_stat_get_activity(backend_pid))
AND last_seen > (SELECT min(backend_start) FROM pg_stat_activity
                 WHERE usename = current_user AND datname = current_database())
"""

_DECLARE_DISCONNECTED_DEAD = """
WITH gone AS (
    SELECT w.id FROM unnest($1::uuid[], $2::timestamptz[]) AS g(id, last_seen)
    JOIN workers w ON w.id = g.id AND w.last_seen = g.last_seen
    WHERE w.dead_at IS NULL ORDER BY w.id FOR NO KEY UPDATE OF w SKIP LOCKED
)
UPDATE workers w SET dead_at = now() FROM gone g WHERE w.id = g.id RETURNING w.id
"""

# Locked in order of id: two janitors that met the rows in different order would deadlock. A row that is
# locked belongs to a worker that is just beating, or to a janitor that declares it.
# Only within half a lease of the database's own answer: a statement that waited in the socket of a server
# that stood still would find every worker silent, and kill the fleet when the server goes on.
_DECLARE_DEAD = """
WITH silent AS (
    SELECT id FROM workers WHERE dead_at IS NULL AND last_seen < now() - make_interval(secs => $1::float8)
    AND now() < $2::timestamptz + make_interval(secs => $1::float8 / 2)
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE workers w SET dead_at = now() FROM silent s WHERE w.id = s.id RETURNING w.id
"""


class PostgresWorkers:
    """`pipeline.ports.Workers` on PostgreSQL; give it connections that nothing else waits for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def beat(self, beat: Heartbeat) -> bool:
        """Report for duty; False where this worker was declared dead."""
        row = [beat.worker_id, list(beat.queues), beat.slots, beat.running, beat.free, beat.unclaimed]
        return bool(await self._database.fetch(_BEAT, [*row, list(beat.claimed_through)]))

    async def held_by(self, worker_id: UUID) -> list[Holding]:
        """List what the database says a worker holds."""
        rows = await self._database.fetch(_HELD_BY, [worker_id])
        return [Holding(Reference(UUID(task_id), dispatch), asked) for task_id, dispatch, asked in rows]

    async def close(self, worker_id: UUID) -> None:
        """Sign off a worker that holds nothing any more."""
        await self._database.fetch(_CLOSE, [worker_id])

    async def disconnected(self) -> list[Disconnected]:
        """List workers not yet declared dead of which the connection that brought the last beat has ended."""
        rows = await self._database.fetch(_DISCONNECTED)
        return [Disconnected(UUID(worker_id), last_seen) for worker_id, last_seen in rows]

    async def declare_disconnected_dead(self, disconnected: Collection[Disconnected]) -> list[UUID]:
        """Declare dead, once, those of them that have not beaten since."""
        ids, moments = [one.worker_id for one in disconnected], [one.last_seen for one in disconnected]
        return _ids(await self._database.fetch(_DECLARE_DISCONNECTED_DEAD, [ids, moments]))

    async def declare_dead(self, lease_seconds: float) -> list[UUID]:
        """Declare dead, once, every worker not seen for a lease."""
        asked_at = time.monotonic()
        [(answered_at,)] = await self._database.fetch("SELECT now()")
        if time.monotonic() - asked_at > lease_seconds / 2:
            return []  # it stood still: the heartbeats wait behind this very answer
        return _ids(await self._database.fetch(_DECLARE_DEAD, [lease_seconds, answered_at]))


def _ids(rows: list[Row]) -> list[UUID]:
    return [UUID(worker_id) for (worker_id,) in rows]
