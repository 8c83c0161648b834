"""Drain: so many tasks wait, then one relay and one worker are started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.costs import Cost, Meter
from benchmarks.rates import Rates
from benchmarks.scene import SHIPPED
from benchmarks.workload import PAYLOAD, preload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.scene import Scene, Site

SECONDS_PER_TASK = 0.01
LEAST_SECONDS = 120.0

SLOTS = 500
SHORT_TASKS = {"WORKER_CONCURRENCY": str(SLOTS), "WORKER_PREFETCH": "32"}
"""What documents/scaling.md advises for them: each statement carries more."""

SPAN = "SELECT min(finished_at), max(finished_at) FROM tasks"


class Drain(msgspec.Struct, frozen=True):
    """How fast they were done, and what one of them cost."""

    tasks: int
    rates: Rates
    cost: Cost


async def drain(
    scene: Scene,
    tasks: int,
    *,
    kind: str = "echo",
    payload: object = PAYLOAD,
    echoed: bool = True,
    settings: Mapping[str, str] = SHIPPED,
) -> Drain:
    """Preload, start, wait until all are recorded, and check that nothing is left and nothing is missing.

    The log is read from the start of the processes, and begins with a checkpoint: each page that is written
    is written whole once. Processor time counts once both are up. Raises NotAsPromised.
    """
    await preload(scene.database, tasks, kind=kind, payload=payload)
    await scene.fetch("CHECKPOINT")
    meter = await Meter.start(scene.servers)
    relay = await scene.start("relay", **settings)
    worker = await scene.start("worker", **settings)
    up_at = max(await relay.up(), await worker.up())
    meter.restart_cpu({"relay": relay.pid, "worker": worker.pid})
    await scene.observer.all_ended(patience_seconds(tasks))
    cost = await meter.read(tasks)
    await scene.check_rest(tasks, echoed=echoed)
    [(first_at, last_at)] = await scene.fetch(SPAN)
    return Drain(tasks=tasks, rates=Rates.of(tasks, relay.spawned_at, first_at, last_at, up_at), cost=cost)


async def measure(site: Site, tasks: int) -> Drain:
    """Drain with as many slots as short tasks want."""
    async with site.scene() as scene:
        return await drain(scene, tasks, settings=SHORT_TASKS)


async def measure_shipped(site: Site, tasks: int) -> Drain:
    """Drain with the settings as shipped."""
    async with site.scene() as scene:
        return await drain(scene, tasks)


def patience_seconds(tasks: int) -> float:
    """Choose how long tasks may take before the measurement is given up."""
    return max(LEAST_SECONDS, tasks * SECONDS_PER_TASK)
