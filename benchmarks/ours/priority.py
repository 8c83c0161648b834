"""Priority: HIGH tasks that come while half a million LOW ones wait."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from benchmarks.calls import post_steadily
from benchmarks.observer import NotAsPromised
from benchmarks.percentiles import Milliseconds
from benchmarks.workload import TASK, body_of, preload
from storage.model import Priority
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from benchmarks.scene import Site

LOW_TASKS = 500_000
START_SECONDS = 60.0
PER_SECOND, WARM_UP_SECONDS, SECONDS = 20.0, 3.0, 15.0

_STARTED = "SELECT id, extract(epoch FROM started_at)::float8 FROM tasks WHERE id = ANY($1::uuid[])"
_WAITING = "SELECT count(*)::int FROM tasks WHERE priority = 3 AND started_at IS NULL"


class Behind(msgspec.Struct, frozen=True):
    """From when the POST of a HIGH task was due until it started; how many LOW ones were left at the end."""

    low_tasks: int
    low_tasks_left: int
    started: Milliseconds


async def measure(site: Site, low_tasks: int = LOW_TASKS) -> Behind:
    """Let all roles work on the LOW tasks, and post HIGH ones."""
    async with site.scene() as scene:
        await preload(scene.database, low_tasks, priority=Priority.LOW)
        await scene.start_roles()
        body = body_of({**TASK, "priority": Priority.HIGH.name})
        await post_steadily(scene.url, body, PER_SECOND, WARM_UP_SECONDS)
        posted = await post_steadily(scene.url, body, PER_SECOND, SECONDS)
        [(left,)] = await scene.fetch(_WAITING)
        if not left:
            raise NotAsPromised("the LOW tasks were all started before the HIGH ones had been posted")
        ids = [each.task_id for each in posted]

        async def all_started() -> dict[UUID, float]:
            rows = await scene.fetch(_STARTED, ids)
            return {UUID(task_id): at for task_id, at in rows} if all(at for _, at in rows) else {}

        started_at = await eventually(all_started, seconds=START_SECONDS)
        return Behind(
            low_tasks=low_tasks,
            low_tasks_left=left,
            started=Milliseconds.of(started_at[each.task_id] - each.due_at for each in posted),
        )
