"""Wire: how often a task makes the service talk to its servers, counted by a tap between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks import wrk
from benchmarks.ours.accept import CONNECTIONS_OF_BATCHES
from benchmarks.ours.drain import SHORT_TASKS, drain
from benchmarks.ours.latency import TIMES, WARM_UP_TIMES, alone
from benchmarks.scene import SHIPPED
from benchmarks.tap import Tap
from benchmarks.workload import BATCH, BATCH_PATH, TASKS_PATH, body_of, body_of_batch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.scene import Site


class Talk(msgspec.Struct, frozen=True):
    """For one task; each answer of PostgreSQL is a round trip, frames are those of both sides."""

    sql_round_trips: float
    amqp_frames: float

    @classmethod
    def of(cls, tap: Tap, tasks: int) -> Talk:
        """Divide what has passed."""
        return cls(round(tap.sql_round_trips / tasks, 4), round(tap.amqp_frames / tasks, 4))


class Wire(msgspec.Struct, frozen=True):
    """As in the measurements of these names; no times are taken, for the tap takes some itself."""

    drain: Talk
    shipped: Talk
    accept: Talk
    batch: Talk
    latency: Talk


async def measure(site: Site, tasks: int) -> Wire:
    """Count for each way through the service."""
    return Wire(
        drain=await _drain(site, tasks, SHORT_TASKS),
        shipped=await _drain(site, tasks, SHIPPED),
        accept=await _accept(site, TASKS_PATH, body_of(), 1, wrk.CONNECTIONS),
        batch=await _accept(site, BATCH_PATH, body_of_batch(), BATCH, CONNECTIONS_OF_BATCHES),
        latency=await _alone(site),
    )


async def _drain(site: Site, tasks: int, settings: Mapping[str, str]) -> Talk:
    """Count from the start of the processes."""
    tap = Tap()
    async with site.scene(tap) as scene:
        await drain(scene, tasks, settings=settings)
        return Talk.of(tap, tasks)


async def _accept(site: Site, path: str, body: bytes, tasks: int, connections: int) -> Talk:
    tap = Tap()
    async with site.scene(tap) as scene:
        await scene.start("gateway")
        url, folder = f"{scene.url}{path}", site.new_folder()
        await wrk.post(url, body, folder, connections=connections, seconds=wrk.WARM_UP_SECONDS)
        tap.restart()
        loop = await wrk.post(url, body, folder, connections=connections)
        return Talk.of(tap, loop.requests * tasks)


async def _alone(site: Site) -> Talk:
    tap = Tap()
    async with site.scene(tap) as scene:
        await scene.start_roles()
        await alone(scene, WARM_UP_TIMES)
        tap.restart()
        await alone(scene, TIMES)
        return Talk.of(tap, TIMES)
