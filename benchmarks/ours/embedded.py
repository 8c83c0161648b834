"""Embedded: the default of `make run`, with its PostgreSQL and its broker in memory, all in one process."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from benchmarks.observer import ASK_SECONDS, Observer
from benchmarks.ours.drain import SPAN, patience_seconds
from benchmarks.programs import running
from benchmarks.rates import Rates
from benchmarks.scene import SHIPPED, up
from benchmarks.workload import preload
from pipeline.bench.costs import Processes
from storage.embedded import EmbeddedPostgres
from tests.support.ledgers import address_of, connected, migrated
from tests.support.servers import Database, OwnPostgres
from tests.support.service import BATON

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.scene import Site

COMMAND = (str(BATON), "run", "--embedded")


class Embedded(msgspec.Struct, frozen=True):
    """How fast they were done; the processor time is that of the process and its PostgreSQL together."""

    tasks: int
    rates: Rates
    cpu_microseconds: float


async def measure(site: Site, tasks: int) -> Embedded:
    """Preload the data folder, then start the service on it, with the settings as shipped."""
    folder = site.new_folder()
    data, log = folder / "data", folder / "embedded.log"
    await _preload(data, tasks)
    spawned_at = datetime.now(UTC)
    async with running(COMMAND, log, {**SHIPPED, "DATA_DIR": str(data), "PORT": "0"}) as service:
        up_at = await up(log)
        processes = Processes()
        before = processes.cpu_seconds(service.pid)
        async with connected(address_of(_lent(data)), timeout_seconds=ASK_SECONDS) as asking:
            observer = Observer(asking)
            await observer.all_ended(patience_seconds(tasks))
            cpu_seconds = processes.cpu_seconds(service.pid) - before
            await observer.check(tasks)
            [(first_at, last_at)] = await observer.fetch(SPAN)
    return Embedded(
        tasks=tasks,
        rates=Rates.of(tasks, spawned_at, first_at, last_at, up_at),
        cpu_microseconds=round(1e6 * cpu_seconds / tasks, 1),
    )


async def _preload(data: Path, tasks: int) -> None:
    async with EmbeddedPostgres(data) as server:
        home = OwnPostgres(server).home
        await migrated(home)
        await preload(home, tasks)


def _lent(data: Path) -> Database:
    """Find the database by the link to its socket's folder."""
    server = EmbeddedPostgres
    return Database(str((data / "socket").resolve()), server.port, server.user, "", server.database)
