"""Servers for every test that asks for one: started once, private, ended with the session.

`postgres` and `rabbitmq` give a fresh database and a fresh vhost of the session's servers, `ledger_database`
gives a fresh database with our schema; a test that kills, pauses or stops a server starts its own with
`own_postgres` and `own_rabbitmq`. TEST_POSTGRES_URL and TEST_RABBITMQ_URL name running servers to use
instead; they are never stopped.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.support.debian import require
from tests.support.ledgers import migrated
from tests.support.rabbitmq_node import SCRIPTS, RabbitmqNode
from tests.support.servers import PostgresServer, RabbitmqError, RunningRabbitmq, private_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from storage.database import Address
    from tests.support.servers import Database, OwnPostgres, RabbitmqServer, Vhost

LOCAL = {"localhost", "127.0.0.1", "::1"}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    """The session's PostgreSQL."""
    if url := os.environ.get("TEST_POSTGRES_URL"):
        yield PostgresServer.running(url)
        return
    async with private_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest_asyncio.fixture
async def postgres(postgres_server: PostgresServer) -> AsyncIterator[Database]:
    """A fresh database, dropped afterwards."""
    async with postgres_server.database() as database:
        yield database


@pytest_asyncio.fixture
async def ledger_database(postgres: Database) -> Address:
    """A fresh database with our schema, dropped afterwards."""
    return await migrated(postgres)


@pytest_asyncio.fixture
async def own_postgres(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Callable[[], Awaitable[OwnPostgres]]]:
    """Starts servers for this test alone."""
    async with AsyncExitStack() as stack:

        async def start() -> OwnPostgres:
            folder = tmp_path_factory.mktemp("own_postgres")
            return await stack.enter_async_context(private_postgres(folder))

        yield start


@pytest.fixture(scope="session")
def make_rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], RabbitmqNode]:
    """Makes private brokers, not yet launched; installs RabbitMQ if need be."""
    require("rabbitmq-server", SCRIPTS)
    return lambda: RabbitmqNode(tmp_path_factory.mktemp("rabbitmq"))


@pytest.fixture(scope="session")
def rabbitmq_node(make_rabbitmq_node: Callable[[], RabbitmqNode]) -> Iterator[RabbitmqNode]:
    """The session's private RabbitMQ, launched but perhaps not ready."""
    node = make_rabbitmq_node()
    with ExitStack() as stack:
        stack.callback(node.close)
        node.launch()
        yield node


@pytest.fixture(scope="session", autouse=True)
def _rabbitmq_boots_meanwhile(request: pytest.FixtureRequest) -> None:
    """Launch RabbitMQ first where a test will need it: it boots for seconds while others run."""
    needed = any("rabbitmq_server" in getattr(item, "fixturenames", ()) for item in request.session.items)
    if needed and "TEST_RABBITMQ_URL" not in os.environ and SCRIPTS.exists():
        request.getfixturevalue("rabbitmq_node")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rabbitmq_server(request: pytest.FixtureRequest) -> AsyncIterator[RabbitmqServer]:
    """The session's RabbitMQ."""
    if url := os.environ.get("TEST_RABBITMQ_URL"):
        server = await _running_rabbitmq(url)
        yield server
        await server.delete_vhosts()
        return
    node: RabbitmqNode = request.getfixturevalue("rabbitmq_node")
    await node.ready()
    yield node


@pytest_asyncio.fixture
async def rabbitmq(rabbitmq_server: RabbitmqServer) -> AsyncIterator[Vhost]:
    """A fresh vhost, deleted afterwards."""
    async with rabbitmq_server.vhost() as vhost:
        yield vhost


@pytest_asyncio.fixture
async def own_rabbitmq(
    make_rabbitmq_node: Callable[[], RabbitmqNode],
) -> AsyncIterator[Callable[[], Awaitable[RabbitmqNode]]]:
    """Starts brokers for this test alone."""
    async with AsyncExitStack() as stack:

        async def start() -> RabbitmqNode:
            node = make_rabbitmq_node()
            stack.callback(node.close)
            await node.start()
            return node

        yield start


async def _running_rabbitmq(url: str) -> RunningRabbitmq:
    parts = urlsplit(url)
    server = RunningRabbitmq(f"{parts.scheme}://{parts.netloc}")
    remedy = "unset TEST_RABBITMQ_URL, and the tests start a server of their own"
    if parts.hostname not in LOCAL:
        pytest.fail(f"vhosts are made with rabbitmqctl, but {parts.hostname} is far: {remedy}", pytrace=False)
    try:
        await server.evaluate("ok.")
    except RabbitmqError as error:
        pytest.fail(f"vhosts are made with rabbitmqctl, which failed ({error}): {remedy}", pytrace=False)
    return server
