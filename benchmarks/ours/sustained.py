"""Sustained: single POSTs at a steady rate through all roles, for minutes, with a checkpoint in them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from benchmarks.calls import post_steadily
from benchmarks.costs import Cost, Meter
from benchmarks.percentiles import Milliseconds
from benchmarks.workload import body_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.calls import Posted
    from benchmarks.scene import Scene, Site

WARM_UP_SECONDS = 10.0
LEFT_SECONDS = 600.0
ASKED_AT_ONCE = 10_000

_FINISHED = "SELECT id, extract(epoch FROM finished_at)::float8 FROM tasks WHERE id = ANY($1::uuid[])"


class Sustained(msgspec.Struct, frozen=True):
    """From when a POST was due until its answer, and until its task was recorded.

    `left_seconds` is how long after the last answer the last task was recorded.
    """

    per_second: float
    seconds: float
    tasks: int
    accepted: Milliseconds
    finished: Milliseconds
    left_seconds: float
    cost: Cost


async def measure(site: Site, per_second: float, seconds: float) -> Sustained:
    """Post in an open loop, after a warm-up; the checkpoint comes in the middle."""
    async with site.scene() as scene:
        parts = await scene.start_roles()
        body = body_of()
        warmed_up = await post_steadily(scene.url, body, per_second / 2, WARM_UP_SECONDS)
        meter = await Meter.start(scene.servers, {name: part.pid for name, part in parts.items()})
        posted, _ = await asyncio.gather(
            post_steadily(scene.url, body, per_second, seconds), _checkpoint(scene, seconds / 2)
        )
        answered_at = max(each.answered_at for each in posted)
        await scene.observer.all_ended(LEFT_SECONDS)
        cost = await meter.read(len(posted))
        await scene.check_rest(len(warmed_up) + len(posted))
        finished_at = await finishes(scene, posted)
        return Sustained(
            per_second=per_second,
            seconds=seconds,
            tasks=len(posted),
            accepted=Milliseconds.of(each.answered_at - each.due_at for each in posted),
            finished=Milliseconds.of(finished_at[each.task_id] - each.due_at for each in posted),
            left_seconds=round(max(finished_at.values()) - answered_at, 3),
            cost=cost,
        )


async def finishes(scene: Scene, posted: Sequence[Posted]) -> dict[UUID, float]:
    """Ask when tasks were recorded."""
    found: dict[UUID, float] = {}
    for start in range(0, len(posted), ASKED_AT_ONCE):
        ids = [each.task_id for each in posted[start : start + ASKED_AT_ONCE]]
        found |= {UUID(task_id): at for task_id, at in await scene.fetch(_FINISHED, ids)}
    return found


async def _checkpoint(scene: Scene, after_seconds: float) -> None:
    await asyncio.sleep(after_seconds)
    await scene.fetch("CHECKPOINT")
