"""Memory: what each process takes before and after a million tasks have gone through it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from benchmarks.calls import CREATED, check, one_by_one
from benchmarks.ours.drain import patience_seconds
from benchmarks.workload import BATCH, body_of_batch
from pipeline.bench.http import Target
from tests.chaos.harness.memory import Sampler

if TYPE_CHECKING:
    from benchmarks.scene import Site

TASKS, AT_ONCE = 1_000_000, 100_000
REST_SECONDS = 5.0


class Taken(msgspec.Struct, frozen=True):
    """Proportional set sizes of a process with its children; shared memory, PostgreSQL's, is not within."""

    at_rest_mib: float
    afterwards_mib: float
    most_mib: float


class Memory(msgspec.Struct, frozen=True):
    """What each process took."""

    tasks: int
    taken: dict[str, Taken]


async def measure(site: Site, tasks: int = TASKS) -> Memory:
    """Post tasks through the gateway by batches, a hundred thousand at a time, through all roles."""
    async with site.scene() as scene:
        parts = await scene.start_roles()
        pids = {
            **{name: [part.pid] for name, part in parts.items()},
            "postgresql": scene.servers.postgres.pids()[:1],
            "rabbitmq": scene.servers.rabbitmq.pids(),
        }
        sampler = Sampler(lambda: pids)
        async with sampler.phase("at rest"):
            await asyncio.sleep(REST_SECONDS)
        request = Target.of(scene.url).post("/tasks/batch", body_of_batch())
        async with sampler.phase("working"):
            for start in range(0, tasks, AT_ONCE):
                batches = min(AT_ONCE, tasks - start) // BATCH
                check(await one_by_one(scene.url, [request] * batches), batches, CREATED)
                await scene.observer.all_ended(patience_seconds(AT_ONCE))
        async with sampler.phase("afterwards"):
            await asyncio.sleep(REST_SECONDS)
        await scene.check_rest(tasks)
        growth = sampler.growth()
        return Memory(
            tasks=tasks,
            taken={
                name: Taken(
                    at_rest_mib=growth["at rest"][name].last_quarter_mib,
                    afterwards_mib=growth["afterwards"][name].last_quarter_mib,
                    most_mib=growth["working"][name].most_mib,
                )
                for name in pids
            },
        )
