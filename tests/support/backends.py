"""A ledger with a hand on its clock and its queues: in memory, and on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pipeline.testing import ManualClock, MemoryLedger

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from pipeline.ports import Ledger
    from storage.database import Database
    from storage.ledger import PostgresLedger


class Backend(Protocol):
    """A ledger by a time that the test moves."""

    @property
    def ledger(self) -> Ledger: ...

    async def now(self) -> datetime:
        """The ledger's present time."""

    async def advance(self, seconds: float) -> None:
        """Let time pass for all that is in the ledger."""

    async def disconnect(self, worker_id: UUID) -> None:
        """End the connection over which a worker beat last."""

    async def pause(self, queue: str) -> None: ...

    async def resume(self, queue: str) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self._clock = ManualClock()
        self.ledger = MemoryLedger(self._clock)

    async def now(self) -> datetime:
        return self.ledger.now()

    async def advance(self, seconds: float) -> None:
        await self._clock.advance(seconds)

    async def disconnect(self, worker_id: UUID) -> None:
        self.ledger.disconnect(worker_id)

    async def pause(self, queue: str) -> None:
        self.ledger.pause(queue)

    async def resume(self, queue: str) -> None:
        self.ledger.resume(queue)


_MOMENTS = """
SELECT string_agg(format('UPDATE %I SET %s', table_name, columns), ';') FROM (
    SELECT table_name, string_agg(format('%I = %I - $', column_name, column_name), ', ') AS columns
    FROM information_schema.columns
    WHERE table_schema = 'public' AND data_type = 'timestamp with time zone'
    AND table_name <> 'schema_migrations'
    GROUP BY table_name) moments
"""

# Not TRUNCATE, which makes new files: fifty times as slow where few rows are written.
_EMPTY = """
DELETE FROM tasks; DELETE FROM payloads; DELETE FROM task_tags; DELETE FROM results; DELETE FROM outbox;
DELETE FROM audit; DELETE FROM idempotency_keys; DELETE FROM dead_letters; DELETE FROM workers;
UPDATE queues SET paused = false
"""


class PostgresBackend:
    """PostgreSQL has no clock to move: all moments in the tables move into the past instead."""

    def __init__(self, ledger: PostgresLedger, database: Database) -> None:
        self.ledger = ledger
        self._database = database
        self._moments = ""

    async def empty(self) -> None:
        """Forget all that tests have written."""
        await self._database.script(_EMPTY)

    async def now(self) -> datetime:
        [(now,)] = await self._database.fetch("SELECT clock_timestamp()")
        assert now.tzinfo
        return now  # type: ignore[no-any-return]  # a row of the driver has no types

    async def advance(self, seconds: float) -> None:
        if not self._moments:
            [(self._moments,)] = await self._database.fetch(_MOMENTS)
        await self._database.script(self._moments.replace("$", f"interval '{seconds:f} seconds'"))

    async def disconnect(self, worker_id: UUID) -> None:
        query = "SELECT pg_terminate_backend(backend_pid, 10000) FROM workers WHERE id = $1"
        assert await self._database.fetch(query, [worker_id]) == [(True,)]

    async def pause(self, queue: str) -> None:
        await self._database.fetch("UPDATE queues SET paused = true WHERE name = $1", [queue])

    async def resume(self, queue: str) -> None:
        await self._database.fetch("UPDATE queues SET paused = false WHERE name = $1", [queue])
