"""Where measurements are taken: servers of a round, and for each measurement a service of its own on them."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from benchmarks.observer import ASK_SECONDS, NotAsPromised, Observer
from tests.chaos.harness.servers import private_servers
from tests.support.ledgers import address_of, connected
from tests.support.service import Service, service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from benchmarks.tap import Tap
    from tests.chaos.harness.servers import Servers
    from tests.support.servers import Database, Vhost
    from tests.support.service import Process

POSTGRES: Mapping[str, str] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    # The log of a measurement is read after it, and the server is asked when a peer's result was committed.
    "wal_keep_size": "4GB",
    "track_commit_timestamp": "on",
}
"""Durable settings, of ours and of all we compare with."""

SHIPPED = {"LOG_FORMAT": "json", "HANDLERS": ""}
"""No setting of the service is changed but where its log and its servers are."""

ROLES = ("relay", "worker", "dead-letter,janitor", "gateway")

START_SECONDS = 60.0
REST_SECONDS = 60.0


class Scene:
    """A database, a vhost and the processes of one service."""

    def __init__(
        self, servers: Servers, database: Database, vhost: Vhost, running: Service, observer: Observer
    ) -> None:
        self.servers = servers
        self.database = database
        self.vhost = vhost
        self.observer = observer
        self._service = running

    @property
    def url(self) -> str:
        """Where the gateway that was started last listens."""
        return str(self._service.client.base_url).rstrip("/")

    async def start(self, role: str, **settings: str) -> Started:
        """Start a process with these roles; it may not be up yet."""
        spawned_at = datetime.now(UTC)
        return Started(await self._service.start(role, **{**SHIPPED, **settings}), spawned_at)

    async def start_roles(self, *roles: str) -> dict[str, Started]:
        """Start a process for each of these roles, by default for all, and wait until they are up."""
        # The gateway last: the others boot while it is waited for.
        parts = {role: await self.start(role) for role in roles or ROLES}
        for part in parts.values():
            await part.up()
        return parts

    async def kill(self, *parts: Started) -> None:
        """End processes as they stand."""
        for part in parts:
            await part.process.kill()

    async def fetch(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the database."""
        return await self.observer.fetch(sql, *parameters)

    async def check_rest(self, tasks: int, *, echoed: bool = True) -> None:
        """Check that nothing is left on the way, and what Observer.check does; raises NotAsPromised."""
        await eventually(self._nothing_is_left, seconds=REST_SECONDS)
        await self.observer.check(tasks, echoed=echoed)

    async def _nothing_is_left(self) -> bool:
        depths = (await self.vhost.queue_depths()).values()
        outbox = await self.fetch("SELECT FROM outbox LIMIT 1")
        return not outbox and not any(depth.ready or depth.unacked for depth in depths)


class Started(NamedTuple):
    """A process of the service, and when it was spawned."""

    process: Process
    spawned_at: datetime

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def up(self) -> datetime:
        """Wait for the line of its log that says so; when that was."""
        return await up(self.process.log)


async def up(log: Path) -> datetime:
    """Wait until a process has logged that it is up; when that was."""

    def told() -> str:
        for line in log.read_text().splitlines():
            if '"event":"started"' in line:
                return str(msgspec.json.decode(line)["timestamp"])
        return ""

    try:
        return datetime.fromisoformat(await eventually(told, seconds=START_SECONDS))
    except AssertionError as error:
        raise NotAsPromised(f"a process does not come up, its log is {log}") from error


class Site:
    """The servers of one round."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self._folder = folder
        self._numbers = count()

    @asynccontextmanager
    async def scene(self, tap: Tap | None = None) -> AsyncIterator[Scene]:
        """Make a database and a vhost, remove them afterwards, and end what was started on them.

        A `tap` stands between the service and both servers.
        """
        async with (
            self.servers.postgres.database() as database,
            self.servers.rabbitmq.vhost() as vhost,
            tap.between(database, vhost.url) if tap else nullcontext((database, vhost.url)) as (seen, url),
            service(seen, url, self.new_folder(), SHIPPED) as running,
            connected(address_of(database), size=2, timeout_seconds=ASK_SECONDS) as asking,
        ):
            yield Scene(self.servers, database, vhost, running, Observer(asking))

    def new_folder(self) -> Path:
        """Make a folder for one measurement."""
        folder = self._folder / f"measurement-{next(self._numbers)}"
        folder.mkdir()
        return folder


@asynccontextmanager
async def private_site(folder: Path) -> AsyncIterator[Site]:
    """Start PostgreSQL and RabbitMQ for a round, with durable settings."""
    async with private_servers(folder / "servers", POSTGRES) as servers:
        yield Site(servers, folder)
