"""PostgreSQL with our schema in it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from storage.database import Address, Database
from storage.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support import servers


def address_of(lent: servers.Database) -> Address:
    return Address(
        host=lent.host, port=lent.port, user=lent.user, password=lent.password, database=lent.database
    )


@asynccontextmanager
async def connected(
    address: Address, *, size: int = 1, timeout_seconds: float = 10.0
) -> AsyncIterator[Database]:
    """Connections for as long as the context is open."""
    database = Database(address, size=size, timeout_seconds=timeout_seconds)
    try:
        yield database
    finally:
        await database.close()


async def migrated(lent: servers.Database) -> Address:
    """Bring a database up to date; 50 ms, less than a copy of a template costs."""
    address = address_of(lent)
    async with connected(address) as database:
        await migrate(database)
    return address
