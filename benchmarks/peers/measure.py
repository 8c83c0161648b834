"""The measurements of a peer: as ours are, as far as they can be."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from benchmarks import wrk
from benchmarks.costs import Cost, Meter
from benchmarks.observer import ASK_SECONDS, NotAsPromised, Observer
from benchmarks.peers.catalogue import PEERS, command, installed
from benchmarks.peers.client import opened
from benchmarks.percentiles import Milliseconds
from benchmarks.programs import ProgramFailed, running
from benchmarks.rates import Rates
from benchmarks.workload import PAYLOAD
from tests.support.ledgers import address_of, connected
from tests.support.ports import HOST, free_ports
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from benchmarks.peers.catalogue import Peer
    from benchmarks.peers.client import Client
    from benchmarks.scene import Site
    from tests.support.servers import Database

TIMES, WARM_UP_TIMES = 100, 20
START_SECONDS, DRAIN_SECONDS = 60.0, 180.0
LOOK_SECONDS, CLOSE_LOOK_SECONDS = 0.25, 0.002


class Found(msgspec.Struct, frozen=True):
    """What a peer did; `accepted_per_second` of its gateway, where it has one.

    Latency is from before its client enqueues a task, alone in the system, until the commit that records it.
    """

    tasks: int
    enqueued_per_second: float
    client_cpu_microseconds: float
    rates: Rates
    latency: Milliseconds
    cost: Cost
    accepted_per_second: float | None = None


class Peers(msgspec.Struct, frozen=True):
    """What was found, and who failed with what words."""

    found: dict[str, Found]
    failed: dict[str, str]


async def measure(site: Site, tasks: int) -> Peers:
    """Measure one after the other, those that fail too."""
    found, failed = dict[str, Found](), dict[str, str]()
    for peer in PEERS if installed() else ():
        try:
            found[peer.name] = await _measure(site, peer, min(tasks, peer.tasks))
        except (ProgramFailed, NotAsPromised, TimeoutError) as error:
            failed[peer.name] = f"{type(error).__name__}: {error}"[:500]
    return Peers(found=found, failed=failed)


async def _measure(site: Site, peer: Peer, tasks: int) -> Found:
    async with _set_up(site, peer) as stage:
        latency = await stage.latency()
        found = await stage.drain(tasks, latency)
    if peer.serves:
        async with _set_up(site, peer) as stage:
            return msgspec.structs.replace(found, accepted_per_second=await stage.accept())
    return found


@asynccontextmanager
async def _set_up(site: Site, peer: Peer) -> AsyncIterator[Stage]:
    """Make a database and a vhost, and let the peer prepare them."""
    async with (
        site.servers.postgres.database() as database,
        site.servers.rabbitmq.vhost() as vhost,
        connected(address_of(database), timeout_seconds=ASK_SECONDS) as asking,
    ):
        environment = {"PEERS_POSTGRES": url_of(database), "PEERS_AMQP": vhost.url}
        folder = site.new_folder()
        async with opened(peer, folder, environment) as client:
            yield Stage(
                site=site,
                peer=peer,
                folder=folder,
                environment=environment,
                results=Results(Observer(asking), peer),
                client=client,
            )


def url_of(database: Database) -> str:
    """Write where a database is as libpq does, whose form all drivers of the peers read."""
    place = f"host={quote(database.host, safe='')}&port={database.port}"
    return f"postgresql://{database.user}@/{database.database}?{place}"


class Results:
    """What a peer has recorded, and when: PostgreSQL knows the commit of each row."""

    def __init__(self, observer: Observer, peer: Peer) -> None:
        self._observer = observer
        self._rows = peer.recorded

    async def count(self) -> int:
        """Count what is recorded."""
        [(count,)] = await self._observer.fetch(f"SELECT count(*)::int FROM {self._rows}")
        return int(count)

    async def reach(self, number: int, seconds: float, look_seconds: float = LOOK_SECONDS) -> None:
        """Wait until so many are recorded; raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while await self.count() < number:  # noqa: ASYNC110 - another process records them
                await asyncio.sleep(look_seconds)

    async def last_commits(self, number: int) -> list[datetime]:
        """Tell when the last ones were committed, in order.

        To be asked while the workers live: Procrastinate writes all jobs of one again when it signs off.
        """
        rows = await self._observer.fetch(
            f"SELECT pg_xact_commit_timestamp(xmin) AS at FROM {self._rows} ORDER BY at DESC LIMIT $1", number
        )
        return [at for (at,) in reversed(rows)]

    async def checkpoint(self) -> None:
        """Let each page be written whole once from here on, as before our drain."""
        await self._observer.fetch("CHECKPOINT")


class Stage:
    """A peer on a database and a vhost of its own."""

    def __init__(
        self,
        *,
        site: Site,
        peer: Peer,
        folder: Path,
        environment: Mapping[str, str],
        results: Results,
        client: Client,
    ) -> None:
        self._site = site
        self._peer = peer
        self._folder = folder
        self._environment = environment
        self._results = results
        self._client = client

    async def latency(self) -> Milliseconds:
        """Enqueue tasks one at a time."""
        async with self._workers():
            await self._client.enqueue(1)
            await self._results.reach(1, START_SECONDS)
            began_at = [await self._one(number) for number in range(2, 2 + WARM_UP_TIMES + TIMES)][-TIMES:]
            ended_at = await self._results.last_commits(TIMES)
        pairs = zip(ended_at, began_at, strict=True)
        return Milliseconds.of(ended.timestamp() - began for ended, began in pairs)

    async def _one(self, number: int) -> float:
        enqueued = await self._client.enqueue(1)
        await self._results.reach(number, START_SECONDS, CLOSE_LOOK_SECONDS)
        return enqueued.began_at

    async def drain(self, tasks: int, latency: Milliseconds) -> Found:
        """Enqueue tasks while nobody works, then start the workers."""
        before = await self._results.count()
        enqueued = await self._client.enqueue(tasks)
        await self._results.checkpoint()
        meter = await Meter.start(self._site.servers)
        spawned_at = datetime.now(UTC)
        async with self._workers() as workers:
            await self._results.reach(before + 1, START_SECONDS)
            meter.restart_cpu({f"worker {number}": each.pid for number, each in enumerate(workers, 1)})
            await self._results.reach(before + tasks, DRAIN_SECONDS)
            cost = await meter.read(tasks)
            first_at, *_, last_at = await self._results.last_commits(tasks)
        return Found(
            tasks=tasks,
            enqueued_per_second=round(tasks / enqueued.seconds, 1),
            client_cpu_microseconds=round(1e6 * enqueued.cpu_seconds / tasks, 1),
            rates=Rates.of(tasks, spawned_at, first_at, last_at),
            latency=latency,
            cost=cost,
        )

    async def accept(self) -> float:
        """POST to its gateway, over as many connections as to ours."""
        [port] = free_ports(1)
        serve = [*command(self._peer.serves), f"--port={port}"]
        body = msgspec.json.encode({"name": "noop", "priority": "HIGH", "payload": PAYLOAD})
        url = f"http://{HOST}:{port}/api/v1/tasks"
        async with running(serve, self._folder / "gateway.log", self._environment):
            await eventually(lambda: _listens(port), seconds=START_SECONDS)
            await wrk.post(url, body, self._folder, seconds=wrk.WARM_UP_SECONDS)
            return (await wrk.post(url, body, self._folder)).per_second

    @asynccontextmanager
    async def _workers(self) -> AsyncIterator[list[Process]]:
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    running(command(words), self._folder / f"worker-{number}.log", self._environment)
                )
                for number, words in enumerate(self._peer.workers)
            ]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
