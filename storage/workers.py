"""Liveness: who is at work, by the database's clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from storage.database import Database
    from storage.model import Heartbeat

_BEAT = """
INSERT INTO workers AS w (id, queues, slots, running, free, unclaimed, claimed_through, last_seen)
VALUES ($1, $2::text[], $3::int, $4::int, $5::int, $6::int, $7::timestamptz[], clock_timestamp())
ON CONFLICT (id) DO UPDATE SET queues = excluded.queues, slots = excluded.slots, running = excluded.running,
    free = excluded.free, unclaimed = excluded.unclaimed, claimed_through = excluded.claimed_through,
    last_seen = clock_timestamp()
WHERE w.dead_at IS NULL RETURNING 1
"""

_CLOSE = "DELETE FROM workers WHERE id = $1 RETURNING 1"

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

    async def close(self, worker_id: UUID) -> None:
        """Sign off a worker that holds nothing any more."""
        await self._database.fetch(_CLOSE, [worker_id])

    async def declare_dead(self, lease_seconds: float) -> list[UUID]:
        """Declare dead, once, every worker not seen for a lease."""
        asked_at = time.monotonic()
        [(answered_at,)] = await self._database.fetch("SELECT now()")
        if time.monotonic() - asked_at > lease_seconds / 2:
            return []  # it stood still: the heartbeats wait behind this very answer
        rows = await self._database.fetch(_DECLARE_DEAD, [lease_seconds, answered_at])
        return [UUID(worker_id) for (worker_id,) in rows]
