"""Accept: how many tasks one gateway makes durable, one by one and by batches, while nobody works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks import wrk
from benchmarks.costs import Cost, Meter
from benchmarks.observer import NotAsPromised
from benchmarks.workload import BATCH, BATCH_PATH, TASKS_PATH, body_of, body_of_batch

if TYPE_CHECKING:
    from benchmarks.scene import Site

CONNECTIONS_OF_BATCHES = 4

_WRITTEN = "SELECT (SELECT count(*) FROM tasks)::int, (SELECT count(*) FROM outbox)::int"


class Accept(msgspec.Struct, frozen=True):
    """Tasks accepted a second; the cost is that of one task, the loop's figures are those of one request."""

    per_second: float
    loop: wrk.Loop
    cost: Cost


async def measure(site: Site) -> Accept:
    """POST /tasks over 32 connections."""
    return await _measure(site, TASKS_PATH, body_of(), 1, wrk.CONNECTIONS)


async def measure_batches(site: Site) -> Accept:
    """POST /tasks/batch of 1,000 over 4 connections."""
    return await _measure(site, BATCH_PATH, body_of_batch(), BATCH, CONNECTIONS_OF_BATCHES)


async def _measure(site: Site, path: str, body: bytes, tasks: int, connections: int) -> Accept:
    async with site.scene() as scene:
        gateway = await scene.start("gateway")
        url, folder = f"{scene.url}{path}", site.new_folder()
        await wrk.post(url, body, folder, connections=connections, seconds=wrk.WARM_UP_SECONDS)
        [(before, _)] = await scene.fetch(_WRITTEN)
        meter = await Meter.start(scene.servers, {"gateway": gateway.pid})
        loop = await wrk.post(url, body, folder, connections=connections)
        cost = await meter.read(loop.requests * tasks)
        [(written, handed_over)] = await scene.fetch(_WRITTEN)
        check_written(written - before, loop.requests * tasks, unanswered=2 * connections * tasks)
        if written != handed_over:
            raise NotAsPromised(f"of {written} tasks {handed_over} stand in the outbox")
        return Accept(per_second=round(loop.per_second * tasks, 1), loop=loop, cost=cost)


def check_written(written: int, answered: int, *, unanswered: int) -> None:
    """Check that what was answered is there, and no more but the last requests, for which wrk does not wait.

    Raises NotAsPromised.
    """
    if not 0 <= written - answered <= unanswered:
        raise NotAsPromised(f"{answered} tasks were accepted, {written} were written")
