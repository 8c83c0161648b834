"""What tasks cost: write-ahead log and commits of PostgreSQL, processor time of processes.

The counters of PostgreSQL are those of the whole server: what else it did meanwhile is told beside them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pipeline.bench.ports import Measurements
    from storage.measurements import Counters

GENERATOR = "load generator"
STATISTICS_SECONDS = 1.1  # PostgreSQL's processes report what they have done once a second
PAGE_BYTES = 8192


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What `tasks` tasks have cost, together and each; None where nothing can be said.

    `full_page_image_bytes_per_task` is what page images, which follow a checkpoint, take of the log at most:
    PostgreSQL counts images and not their bytes. `commits` are those that wrote, of the whole server.
    `sql_round_trips` are at least so many: the database's transactions as far as its backends have reported
    them, for each statement of the service is one of its own, and no fewer than those that wrote.
    Processor time is in microseconds, with children.
    """

    tasks: int
    wal_bytes: int
    full_page_images: int
    commits: int
    sql_round_trips: int
    wal_bytes_per_task: float | None
    full_page_image_bytes_per_task: float | None
    commits_per_task: float | None
    sql_round_trips_per_task: float | None
    cpu_us_per_task: dict[str, float | None]
    foreign_tasks: int
    foreign_commits: int


class Mark(NamedTuple):
    """Counters at one moment; `cpu_seconds` has None for a process that is gone."""

    at_seconds: float
    counters: Counters
    cpu_seconds: Mapping[str, float | None]


class Bookkeeper:
    """Reads counters before and after; the difference is what happened in between.

    `processes` names the processes whose time counts, each with all below it.
    """

    def __init__(
        self,
        measurements: Measurements,
        processes: Mapping[str, int],
        proc: Processes | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._measurements = measurements
        self._proc = proc or Processes()
        # A number that was given to another process meanwhile is not the one that is meant.
        self._processes = {name: (pid, self._proc.started(pid)) for name, pid in processes.items()}
        self._sleep = sleep

    async def mark(self) -> Mark:
        """Read all; what PostgreSQL reports late is waited for, and nothing else."""
        cpu_seconds = self._cpu_seconds()
        at_seconds = await self._measurements.clock_seconds()
        at_once = await self._measurements.counters()
        await self._sleep(STATISTICS_SECONDS)
        late = await self._measurements.counters()
        counters = msgspec.structs.replace(late, wal_bytes=at_once.wal_bytes, commits=at_once.commits)
        return Mark(at_seconds, counters, cpu_seconds)

    async def costs(self, before: Mark, after: Mark, tasks: int, tag: str) -> Costs:
        """Take the difference, for this many tasks; those without the tag are others'."""
        images = after.counters.full_page_images - before.counters.full_page_images
        wal_bytes = after.counters.wal_bytes - before.counters.wal_bytes
        commits = after.counters.commits - before.counters.commits
        round_trips = max(commits, after.counters.transactions - before.counters.transactions)
        return Costs(
            tasks=tasks,
            wal_bytes=wal_bytes,
            full_page_images=images,
            commits=commits,
            sql_round_trips=round_trips,
            wal_bytes_per_task=_each(wal_bytes, tasks),
            full_page_image_bytes_per_task=_each(min(images * PAGE_BYTES, wal_bytes), tasks),
            commits_per_task=_each(commits, tasks),
            sql_round_trips_per_task=_each(round_trips, tasks),
            cpu_us_per_task={
                name: None if seconds is None or earlier is None else _each((seconds - earlier) * 1e6, tasks)
                for name, seconds in after.cpu_seconds.items()
                for earlier in [before.cpu_seconds[name]]
            },
            foreign_tasks=await self._measurements.tasks_without(tag, before.at_seconds, after.at_seconds),
            foreign_commits=after.counters.commits_elsewhere - before.counters.commits_elsewhere,
        )

    def _cpu_seconds(self) -> dict[str, float | None]:
        used: dict[str, float | None] = {GENERATOR: time.process_time()}
        for name, (pid, started) in self._processes.items():
            same = started is not None and self._proc.started(pid) == started
            used[name] = self._proc.cpu_seconds(pid) if same else None
        return used


class Stat(NamedTuple):
    """A line of /proc/PID/stat; times in ticks, those of children that were waited for included."""

    parent: int
    ticks: int
    started: int


class Processes:
    """Processes of this machine, as Linux shows them in /proc."""

    def __init__(
        self, folder: Path = Path("/proc"), ticks_per_second: int = os.sysconf("SC_CLK_TCK")
    ) -> None:
        self._folder = folder
        self._ticks_per_second = ticks_per_second

    def started(self, pid: int) -> int | None:
        """Tell when a process was started, in ticks since the boot; None for one that is not there."""
        with suppress(OSError):
            return self._stat(pid).started
        return None

    def cpu_seconds(self, pid: int) -> float:
        """Add up what a process and all below it have used.

        Each process has the time of the children that it waited for: what came and went between two calls
        is in their difference. One whose parent died first is lost.
        """
        children = defaultdict[int, list[int]](list)
        ticks: dict[int, int] = {}
        for entry in self._folder.iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    stat = self._stat(int(entry.name))
                    children[stat.parent].append(int(entry.name))
                    ticks[int(entry.name)] = stat.ticks
        family = [pid]
        for member in family:
            family += children[member]
        return sum(ticks.get(member, 0) for member in family) / self._ticks_per_second

    def _stat(self, pid: int) -> Stat:
        # The name stands in brackets, and may hold any.
        fields = (self._folder / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return Stat(int(fields[1]), sum(map(int, fields[11:15])), int(fields[19]))


def _each(amount: float, tasks: int) -> float | None:
    return round(amount / tasks, 4) if tasks else None
