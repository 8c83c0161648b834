"""A database that stood still makes every worker look silent, and must kill none of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

from storage.ledger import PostgresLedger
from tests.support.builders import beat
from tests.support.ledgers import migrated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.servers import OwnPostgres

LEASE_SECONDS = 1.0
FROZEN_SECONDS = 1.5


async def test_a_question_that_waited_in_a_frozen_server_declares_nobody_dead(
    own_postgres: Callable[[], Awaitable[OwnPostgres]],
) -> None:
    server = await own_postgres()
    async with PostgresLedger(await migrated(server.home)) as ledger:
        await asyncio.gather(*(ledger.workers.beat(beat(uuid4())) for _ in range(20)))
        await ledger.workers.declare_dead(LEASE_SECONDS)
        server.pause()
        asking = asyncio.create_task(ledger.workers.declare_dead(LEASE_SECONDS))
        await asyncio.sleep(FROZEN_SECONDS)
        server.resume()
        assert await asking == []
