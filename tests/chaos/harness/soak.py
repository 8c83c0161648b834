"""`make soak`: 25 minutes at 70 % of what the machine can, 8 of them beside a reader that holds its snapshot.

A snapshot keeps every dead row: tables grow and the relay's poll walks over what is long gone. What must not
happen is that it stays so. The end must be as fast as the start, and no table, no index and no process grow
without bound. What was seen is written to tests/chaos/reports/soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.harness.memory import Sampler
from tests.chaos.harness.reports import keep
from tests.chaos.harness.scene import SHIPPED
from tests.chaos.harness.servers import private_servers
from tests.support.service import service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.chaos.harness.servers import Servers
    from tests.support.service import Process, Service

SETTINGS = {**SHIPPED, "RETENTION_SECONDS": "300"}
"""Within the soak as much must be pruned as is made."""

SHARE_OF_CAPACITY = 0.7
CAPACITY_SECONDS = 30.0
BATCH = 50
MOST_BEHIND = 50 * BATCH
SNAPSHOT_SHARE = (0.3, 0.3 + 8 / 25)
"""The reader comes after three tenths of the soak and stays for 8 of 25 minutes."""

WINDOW_SHARE = 0.2
WITHIN = 0.9
GROWTH = 1.1

TABLES = ("tasks", "outbox", "payloads", "results", "workers")
_DEAD = """
SELECT relname::text, n_dead_tup::int, (pg_total_relation_size(relid) / 1048576.0)::float8
FROM pg_stat_user_tables WHERE relname = ANY($1::text[])
"""
_ENDED = "SELECT count(*)::int FROM tasks WHERE status = 3"


class Sample(NamedTuple):
    """Once a while: what is done by now, how long a task takes, and what the tables are like."""

    at_seconds: float
    done: int
    latency_seconds: float
    tables: dict[str, tuple[int, float]]


class Soak:
    """One soak on servers of its own."""

    def __init__(self, running: Service, servers: Servers) -> None:
        self._service = running
        self._servers = servers
        self._processes: dict[str, Process] = {}
        self._accepted = 0
        self._samples: list[Sample] = []
        self._sampler = Sampler(self._pids)

    async def run(self, seconds: float) -> dict[str, Any]:
        """Find what the machine can, then soak."""
        for role in ("relay", "worker", "dead-letter,janitor", "gateway"):
            self._processes[role] = await self._service.start(role)
        await self._service.ended(await self._service.submit("echo", {}), seconds=60)
        capacity = await self._capacity()
        rate = capacity * SHARE_OF_CAPACITY
        say(f"{capacity:.0f} tasks/s at most; soaking at {rate:.0f}/s for {seconds / 60:g} minutes")
        began = time.monotonic()
        async with self._sampler.phase("soaking"), asyncio.TaskGroup() as group:
            group.create_task(self._load(rate, began + seconds))
            group.create_task(self._sample(began, began + seconds))
            group.create_task(self._hold_snapshot(seconds))
        left = await self._drained()
        return self._report(capacity, rate, seconds, left)

    async def _capacity(self) -> float:
        """Post as fast as all roles together work it off, and count."""
        until = time.monotonic() + CAPACITY_SECONDS
        before = await self._ended()

        async def room() -> bool:
            return await self._behind() < MOST_BEHIND or time.monotonic() > until

        async def client() -> None:
            while time.monotonic() < until:
                await self._post()
                await eventually(room, seconds=2 * CAPACITY_SECONDS)

        await asyncio.gather(*(client() for _ in range(4)))
        ended = await self._ended()
        await self._drained()
        return (ended - before) / CAPACITY_SECONDS

    async def _load(self, rate: float, until: float) -> None:
        """Post at a steady rate, whatever comes back: open loop."""
        next_at = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while next_at < until:
                group.create_task(self._post())
                next_at += BATCH / rate
                await asyncio.sleep(max(0.0, next_at - time.monotonic()))

    async def _post(self) -> None:
        body = {"tasks": [{"kind": "echo", "payload": {"note": "x" * 150}}] * BATCH}
        response = await self._service.client.post("/api/v1/tasks/batch", json=body)
        assert response.status_code == 201, response.text
        self._accepted += BATCH

    async def _sample(self, began: float, until: float) -> None:
        while (now := time.monotonic()) < until:
            task = await self._service.submit("echo", {}, wait=30)
            took = time.monotonic() - now
            tables = {
                name: (dead, size)
                for name, dead, size in await self._service.database.fetch(_DEAD, [list(TABLES)])
            }
            done = self._accepted - await self._behind()
            self._samples.append(Sample(now - began, done, took if task["finished_at"] else 30.0, tables))
            await asyncio.sleep(max(0.0, now + 5 - time.monotonic()))

    async def _hold_snapshot(self, seconds: float) -> None:
        start, end = (share * seconds for share in SNAPSHOT_SHARE)
        await asyncio.sleep(start)
        say("a reader takes its snapshot")
        connection = await self._servers.postgres.home.connect()
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SELECT count(*) FROM queues")
        await asyncio.sleep(end - start)
        await connection.execute("COMMIT")
        connection.close()
        say("the reader lets go")

    async def _drained(self) -> float:
        """Wait until all is done; how long that took."""
        began = time.monotonic()
        while await self._behind():
            await asyncio.sleep(0.1)
            assert time.monotonic() < began + 120, "not done within 2 minutes"
        return time.monotonic() - began

    async def _behind(self) -> int:
        [(count,)] = await self._service.database.fetch("SELECT count(*)::int FROM tasks WHERE status < 3")
        return int(count)

    async def _ended(self) -> int:
        [(count,)] = await self._service.database.fetch(_ENDED)
        return int(count)

    def _pids(self) -> dict[str, list[int]]:
        return {
            **{role: [process.pid] for role, process in self._processes.items()},
            "rabbitmq": self._servers.rabbitmq.pids(),
            "postgresql": self._servers.postgres.pids(),
        }

    def _report(self, capacity: float, rate: float, seconds: float, left_seconds: float) -> dict[str, Any]:
        windows = {
            "start": self._window(0.05 * seconds, (0.05 + WINDOW_SHARE) * seconds),
            "with_snapshot": self._window(*(share * seconds for share in SNAPSHOT_SHARE)),
            "end": self._window((1 - WINDOW_SHARE) * seconds, seconds),
        }
        start, end = windows["start"]["tasks_per_second"], windows["end"]["tasks_per_second"]
        memory = self._sampler.growth()
        return {
            "capacity_tasks_per_second": round(capacity),
            "rate_tasks_per_second": round(rate),
            "seconds": seconds,
            "accepted": self._accepted,
            "drained_after_seconds": round(left_seconds, 1),
            "windows": windows,
            "memory_mib": memory,
            "checks": {
                "the end is within 10 % of the start": end >= WITHIN * start,
                **{f"{name} was given back what the reader kept": _no_more(windows, name) for name in TABLES},
                **{f"{name} did not grow": grown.flat for name, grown in memory["soaking"].items()},
            },
        }

    def _window(self, start: float, end: float) -> dict[str, Any]:
        within = [sample for sample in self._samples if start <= sample.at_seconds <= end]
        first, last = within[0], within[-1]
        latencies = sorted(sample.latency_seconds * 1000 for sample in within)
        most = {
            name: {
                "dead_rows": max(sample.tables[name][0] for sample in within),
                "mib": round(max(sample.tables[name][1] for sample in within), 1),
            }
            for name in last.tables
        }
        return {
            "tasks_per_second": round((last.done - first.done) / (last.at_seconds - first.at_seconds)),
            "latency_milliseconds": {"median": round(median(latencies), 1), "worst": round(latencies[-1], 1)},
            "tables": most,
        }


def _no_more(windows: dict[str, Any], table: str) -> bool:
    """Tell whether a table is no larger, and has no more dead rows, at the end than beside the reader.

    What ended within the retention is there in any case, and beside the reader fewer tasks end.
    """
    beside, end = (windows[each]["tables"][table] for each in ("with_snapshot", "end"))
    slower = max(1.0, windows["end"]["tasks_per_second"] / windows["with_snapshot"]["tasks_per_second"])
    allowed_mib, allowed_dead = beside["mib"] * GROWTH * slower, beside["dead_rows"] * GROWTH
    return bool(end["mib"] <= allowed_mib and end["dead_rows"] <= allowed_dead)


def say(words: str) -> None:
    """Tell whoever started it."""
    print(f"soak: {words}", flush=True)


async def soak(seconds: float) -> dict[str, Any]:
    """Soak on private servers."""
    with tempfile.TemporaryDirectory(prefix="baton-soak-") as name:
        folder = Path(name)
        async with private_servers(folder / "servers") as servers:
            origin = await servers.origin()
            async with service(servers.postgres.home, servers.rabbitmq.url(), folder, SETTINGS) as running:
                return {**origin, **await Soak(running, servers).run(seconds)}


def main() -> int:
    """Soak; the exit code is 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=25.0)
    report = asyncio.run(soak(parser.parse_args().minutes * 60))
    keep("soak", report)
    for check, held in report["checks"].items():
        say(f"{'yes' if held else 'NO '}  {check}")
    return 0 if all(report["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
