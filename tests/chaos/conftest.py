"""A service on servers of its own, which a test may kill, and the check that nothing was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.support.service import Service, service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.rabbitmq_node import RabbitmqNode
    from tests.support.servers import Database, OwnPostgres, Vhost


@pytest_asyncio.fixture
async def deployed(postgres: Database, rabbitmq: Vhost, tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose processes may be killed; nothing runs yet."""
    async with service(postgres, rabbitmq.url, tmp_path) as started:
        yield started


@pytest_asyncio.fixture
async def on_own_postgres(
    own_postgres: Callable[[], Awaitable[OwnPostgres]], rabbitmq: Vhost, tmp_path: Path
) -> AsyncIterator[tuple[Service, OwnPostgres]]:
    """A service whose database may be killed too; nothing runs yet."""
    server = await own_postgres()
    async with service(server.home, rabbitmq.url, tmp_path) as started:
        yield started, server


@pytest_asyncio.fixture
async def on_own_rabbitmq(
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]], postgres: Database, tmp_path: Path
) -> AsyncIterator[tuple[Service, RabbitmqNode]]:
    """A service whose broker may be killed too; nothing runs yet."""
    node = await own_rabbitmq()
    async with service(postgres, node.url(), tmp_path) as started:
        yield started, node
