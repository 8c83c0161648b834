"""Each test runs on the ledger in memory and on PostgreSQL, by a time that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from storage.database import Address, Database
from storage.ledger import PostgresLedger
from tests.contract.ledger.walk import Walk
from tests.support.backends import Backend, MemoryBackend, PostgresBackend
from tests.support.ledgers import migrated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pipeline.ports import Ledger
    from tests.support.servers import PostgresServer


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
    async with PostgresLedger(ledger_address) as ledger:
        backend = PostgresBackend(ledger, database)
        await backend.empty()
        yield backend
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
