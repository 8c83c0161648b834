"""Latency: one task at a time, from the POST until the client sees it COMPLETED."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.calls import CREATED, check, one_by_one
from benchmarks.costs import Cost, Meter
from benchmarks.observer import NotAsPromised
from benchmarks.percentiles import Milliseconds
from benchmarks.workload import body_of
from pipeline.bench.http import Target

if TYPE_CHECKING:
    from benchmarks.scene import Scene, Site

TIMES, WARM_UP_TIMES = 300, 30


class Latency(msgspec.Struct, frozen=True):
    """Seen by the client; and what one task costs when it comes alone."""

    seen: Milliseconds
    cost: Cost


async def measure(site: Site) -> Latency:
    """POST ?wait, each after the answer to the last, with every role in a process of its own."""
    async with site.scene() as scene:
        parts = await scene.start_roles()
        request = alone(scene)
        check(await one_by_one(scene.url, [request] * WARM_UP_TIMES), WARM_UP_TIMES, CREATED)
        meter = await Meter.start(scene.servers, {name: part.pid for name, part in parts.items()})
        answers = await one_by_one(scene.url, [request] * TIMES)
        cost = await meter.read(TIMES)
        check(answers, TIMES, CREATED)
        if not all(b'"status":"COMPLETED"' in each.body for each in answers):
            raise NotAsPromised("a task did not end within 20 s")
        await scene.check_rest(TIMES + WARM_UP_TIMES)
        return Latency(seen=Milliseconds.of(each.ended_at - each.sent_at for each in answers), cost=cost)


def alone(scene: Scene) -> bytes:
    """Write a POST that is answered when its task has ended."""
    return Target.of(scene.url).post("/tasks?wait=20", body_of())
