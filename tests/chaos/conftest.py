"""A service on servers of its own, which a test may kill, and the check that nothing was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest_asyncio

from tests.support.service import Service, service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.rabbitmq_node import RabbitmqNode
    from tests.support.servers import Database, OwnPostgres, Vhost


class Mortal(NamedTuple):
    """A service and the servers under it."""

    service: Service
    postgres: OwnPostgres
    rabbitmq: RabbitmqNode


@pytest_asyncio.fixture
async def deployed(postgres: Database, rabbitmq: Vhost, tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose processes may be killed; nothing runs yet."""
    async with service(postgres, rabbitmq.url, tmp_path) as started:
        yield started


@pytest_asyncio.fixture
async def mortal(
    own_postgres: Callable[[], Awaitable[OwnPostgres]],
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
    tmp_path: Path,
) -> AsyncIterator[Mortal]:
    """A service whose servers may be killed too; nothing runs yet."""
    postgres, rabbitmq = await own_postgres(), await own_rabbitmq()
    async with service(postgres.home, rabbitmq.url(), tmp_path) as started:
        yield Mortal(started, postgres, rabbitmq)
