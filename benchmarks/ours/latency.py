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
    from benchmarks.calls import Answer
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
        await alone(scene, WARM_UP_TIMES)
        meter = await Meter.start(scene.servers, {name: part.pid for name, part in parts.items()})
        answers = await alone(scene, TIMES)
        cost = await meter.read(TIMES)
        await scene.check_rest(TIMES + WARM_UP_TIMES)
        return Latency(seen=Milliseconds.of(each.ended_at - each.sent_at for each in answers), cost=cost)


async def alone(scene: Scene, times: int) -> list[Answer]:
    """Post tasks, each after the last has ended; raises NotAsPromised where one was not COMPLETED."""
    request = Target.of(scene.url).post("/tasks?wait=20", body_of())
    answers = await one_by_one(scene.url, [request] * times)
    check(answers, times, CREATED)
    if not all(b'"status":"COMPLETED"' in each.body for each in answers):
        raise NotAsPromised("a task did not end within 20 s")
    return answers
