"""Each test runs on the ledger in memory and on PostgreSQL, by a time that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest
import pytest_asyncio

from pipeline.testing import ManualClock, MemoryLedger
from storage.database import Address, Database
from storage.ledger import PostgresLedger
from tests.contract.ledger.walk import Walk
from tests.support.ledgers import migrated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from uuid import UUID

    from pipeline.ports import Ledger
    from tests.support.servers import PostgresServer


class Backend(Protocol):
    """A ledger with a hand on its clock and its queues."""

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
SELECT table_name,
       string_agg(format('%I = %I - make_interval(secs => $1::float8)', column_name, column_name), ', ')
FROM information_schema.columns
WHERE table_schema = 'public' AND data_type = 'timestamp with time zone' AND table_name <> 'schema_migrations'
GROUP BY table_name
"""

_EMPTY = """
TRUNCATE tasks, payloads, results, outbox, idempotency_keys, dead_letters, workers, audit;
UPDATE queues SET paused = false
"""


class PostgresBackend:
    """PostgreSQL has no clock to move: all moments in the tables move into the past instead."""

    def __init__(self, ledger: PostgresLedger, database: Database) -> None:
        self.ledger = ledger
        self._database = database

    async def now(self) -> datetime:
        [(now,)] = await self._database.fetch("SELECT clock_timestamp()")
        assert now.tzinfo
        return now  # type: ignore[no-any-return]  # a row of the driver has no types

    async def advance(self, seconds: float) -> None:
        for table, columns in await self._database.fetch(_MOMENTS):
            await self._database.fetch(f"UPDATE {table} SET {columns}", [seconds])

    async def disconnect(self, worker_id: UUID) -> None:
        query = "SELECT pg_terminate_backend(backend_pid, 10000) FROM workers WHERE id = $1"
        assert await self._database.fetch(query, [worker_id]) == [(True,)]

    async def pause(self, queue: str) -> None:
        await self._database.fetch("UPDATE queues SET paused = true WHERE name = $1", [queue])

    async def resume(self, queue: str) -> None:
        await self._database.fetch("UPDATE queues SET paused = false WHERE name = $1", [queue])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ledger_address(postgres_server: PostgresServer) -> AsyncIterator[Address]:
    """A database with our schema, for the whole session."""
    async with postgres_server.database() as lent:
        yield await migrated(lent)


@pytest.fixture
def memory_backend() -> Backend:
    return MemoryBackend()


@pytest_asyncio.fixture
async def postgres_backend(ledger_address: Address) -> AsyncIterator[Backend]:
    database = Database(ledger_address, size=1)
    await database.script(_EMPTY)
    async with PostgresLedger(ledger_address) as ledger:
        yield PostgresBackend(ledger, database)
    await database.close()


@pytest.fixture(params=["memory", "postgres"])
def time(request: pytest.FixtureRequest) -> Backend:
    """The clock and the queues of the ledger under test."""
    backend: Backend = request.getfixturevalue(f"{request.param}_backend")
    return backend


@pytest.fixture
def ledger(time: Backend) -> Ledger:
    return time.ledger


@pytest.fixture
def walk(ledger: Ledger) -> Walk:
    return Walk(ledger)
