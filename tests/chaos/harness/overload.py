"""`make overload`: the workers are away, and clients post on.

First with the settings as shipped: each task is accepted, or refused by the rule of MAX_WAITING_TASKS; after
a tenth of them no process may grow, the broker raise no alarm, the janitor send nothing again. Then the
workers return, and all that was accepted is done. Then once more with a low limit: LOW is refused first and
HIGH last, and all are taken again when the backlog has fallen. What was seen is written to
tests/chaos/reports/overload.json.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import msgspec

from storage.model import Priority
from tests.chaos.harness.memory import Sampler
from tests.chaos.harness.posting import Clients, Request, mixed
from tests.chaos.harness.reports import keep
from tests.chaos.harness.scene import SHIPPED
from tests.chaos.harness.servers import private_servers
from tests.support.service import Service, service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.chaos.harness.servers import Servers
    from tests.support.service import Process

WORKERS = 2
JANITOR_ROUNDS_SECONDS = 35.0
RELAY_SECONDS, WORK_SECONDS, REST_SECONDS = 600.0, 3600.0, 60.0
"""How long relay and workers may take: the machine may be busy with something else."""

LOOK_SECONDS = 0.5
LOW_LIMIT, LOW_BATCH = 2000, 100


class Overload:
    """One run on servers of its own: what was seen, and which checks held."""

    def __init__(self, running: Service, servers: Servers, janitor_seconds: float) -> None:
        self._service = running
        self._postgres, self._rabbitmq = servers
        self._janitor_seconds = janitor_seconds
        self._processes: dict[str, Process] = {}
        self._accepted = 0
        self._sampler = Sampler(self._pids)
        self.seen: dict[str, Any] = {}
        self.checks: dict[str, bool] = {}

    async def run(self, tasks: int) -> None:
        """Go through all phases."""
        for role in ("relay", "janitor", "dead-letter", "gateway"):
            await self._start(role, role)
        await self._post(tasks)
        await self._wait()
        await self._work()
        await self._refuse()
        await self._service.check()
        self.seen["memory_mib"] = growth = self._sampler.growth()
        for name, grown in growth["posting"].items():
            self.checks[f"{name} did not grow"] = grown.flat and growth["waiting"][name].flat

    async def _post(self, tasks: int) -> None:
        say(f"posting {tasks} tasks, no worker")
        clients, began_at = Clients(self._service.client), time.monotonic()
        async with self._sampler.phase("warming up"):
            await clients.post_all(mixed(tasks // 10))
        async with self._sampler.phase("posting"):
            await clients.post_all(mixed(tasks - tasks // 10))
            ends_at = time.monotonic()
        self._accepted = clients.accepted.total()
        moments, slowness = clients.answered_at, quantiles(clients.milliseconds, n=100)
        quarter = max(1, len(moments) // 4)
        self.seen["posting"] = {
            "accepted": clients.accepted,
            "refused": clients.refused,
            "repeats": clients.repeats,
            "seconds": round(ends_at - began_at, 1),
            "tasks_per_second": round(self._accepted / (ends_at - began_at)),
            "seconds_of_the_quarters": [
                round(moments[min(to, len(moments)) - 1] - moments[to - quarter], 1)
                for to in range(quarter, 4 * quarter + 1, quarter)
            ],
            "milliseconds": {"p50": round(slowness[49], 1), "p99": round(slowness[98], 1)},
        }
        self.checks["each task was accepted, or refused with Retry-After"] = (
            self._accepted + clients.refused.total() == tasks and not clients.without_retry_after
        )

    async def _wait(self) -> None:
        say(f"{self._accepted} accepted; relayed, and left alone for some rounds of the janitor")
        began_at = time.monotonic()
        async with self._sampler.phase("relaying"):
            await eventually(self._outbox_is_empty, seconds=RELAY_SECONDS)
        self.seen["relay_behind_seconds"] = round(time.monotonic() - began_at, 1)
        async with self._sampler.phase("waiting"):
            await asyncio.sleep(self._janitor_seconds)
        depths = await self._rabbitmq.queue_depths()
        self.seen["messages_at_the_broker"] = {queue: depth.ready for queue, depth in depths.items()}
        counts = await self._service.counts()
        self.checks["all that was accepted waits at the broker"] = counts == {"PENDING": self._accepted}
        self.checks["nothing was sent again"] = not self._sent_again()
        said = "".join(file.read_text() for file in (self._rabbitmq._folder / "log").iterdir())
        self.checks["the broker raised no alarm"] = "resource limit alarm set" not in said

    async def _work(self) -> None:
        say("the workers return")
        began_at = time.monotonic()
        async with self._sampler.phase("working"):
            await self._start_workers()
            await self._all_done("all that was accepted is COMPLETED", self._accepted)
        seconds = time.monotonic() - began_at
        self.seen["working"] = {
            "seconds": round(seconds, 1),
            "tasks_per_second": round(self._accepted / seconds),
            "references_sent_again": self._sent_again(),
        }

    async def _refuse(self) -> None:
        say(f"once more, with MAX_WAITING_TASKS={LOW_LIMIT}")
        for name in ("worker-1", "worker-2", "gateway"):
            self.checks[f"{name} drained"] = await self._processes.pop(name).stop() == 0
        await self._start("gateway", "gateway", MAX_WAITING_TASKS=str(LOW_LIMIT))
        clients, refused_at, left = Clients(self._service.client), dict[str, int](), list[Request]()
        while len(refused_at) < len(Priority):
            for priority in Priority:
                request = Request.of([priority.name] * LOW_BATCH)
                if await clients.post(request) is not None:
                    refused_at.setdefault(priority.name, clients.accepted.total())
                    left.append(request)
        say(f"refused when so many waited: {refused_at}; the workers return")
        self.checks["LOW was refused first, HIGH last"] = list(refused_at) == ["LOW", "MEDIUM", "HIGH"]
        await self._start_workers()
        await asyncio.gather(*(clients.post_until_accepted(request) for request in left))
        await self._all_done(
            "what was refused was taken later, and is COMPLETED", self._accepted + clients.accepted.total()
        )
        self.checks["each refusal had Retry-After"] = not clients.without_retry_after
        self.seen["low_limit"] = {
            "limit": LOW_LIMIT,
            "waiting_when_first_refused": refused_at,
            "refused": clients.refused,
            "accepted": clients.accepted,
        }

    async def _all_done(self, check: str, total: int) -> None:
        await eventually(self._all_ended, seconds=WORK_SECONDS)
        self.checks[check] = await self._service.counts() == {"COMPLETED": total}
        await eventually(self._nothing_is_left, seconds=REST_SECONDS)

    async def _all_ended(self) -> bool:
        await asyncio.sleep(LOOK_SECONDS)  # to look is work for the database too
        return not await self._service.database.fetch(
            "SELECT FROM tasks WHERE tenant = '' AND status < 3 AND status <> 3 LIMIT 1"
        )

    def _sent_again(self) -> int:
        """Add up what the janitor took for lost; on a busy machine a few that workers were slow to claim."""
        lines = (line for line in self._processes["janitor"].text().splitlines() if '"sent again"' in line)
        return sum(msgspec.json.decode(line)["tasks"] for line in lines)

    async def _nothing_is_left(self) -> bool:
        depths = (await self._rabbitmq.queue_depths()).values()
        return await self._outbox_is_empty() and not any(depth.ready or depth.unacked for depth in depths)

    async def _outbox_is_empty(self) -> bool:
        return not await self._service.database.fetch("SELECT FROM outbox LIMIT 1")

    async def _start_workers(self) -> None:
        for number in range(WORKERS):
            await self._start(f"worker-{number + 1}", "worker")

    async def _start(self, name: str, role: str, **environment: str) -> None:
        self._processes[name] = await self._service.start(role, **environment)

    def _pids(self) -> dict[str, list[int]]:
        programs = {name: [process.pid] for name, process in self._processes.items()}
        return {**programs, "rabbitmq": self._rabbitmq.pids(), "postgresql": self._postgres.pids()}


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


async def overload(tasks: int, folder: Path, janitor_seconds: float = JANITOR_ROUNDS_SECONDS) -> Overload:
    """Run on a private PostgreSQL and a private RabbitMQ; everything lies in `folder`."""
    async with (
        private_servers(folder / "servers") as servers,
        service(servers.postgres.home, servers.rabbitmq.url(), folder, SHIPPED) as running,
    ):
        found = Overload(running, servers, janitor_seconds)
        found.seen |= {"tasks": tasks, **await servers.origin()}
        await found.run(tasks)
        return found


def main() -> int:
    """Run, write the report, and tell by the exit code whether all checks held."""
    parser = argparse.ArgumentParser(prog="overload", description=__doc__)
    parser.add_argument("--tasks", type=int, default=500_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="baton-overload-") as folder:
        found = asyncio.run(overload(arguments.tasks, Path(folder)))
    sys.stdout.write(keep("overload", {**found.seen, "checks": found.checks}).read_text())
    return 0 if all(found.checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
