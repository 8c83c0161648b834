"""Backlog: whether a drain is as fast with a million tasks waiting as it is with ten thousand."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import msgspec

from benchmarks.ours.drain import drain
from benchmarks.workload import preload

if TYPE_CHECKING:
    from benchmarks.scene import Scene, Site

MANY, FEW, TIMES = 1_000_000, 10_000, 5
DRAIN_SECONDS = 600.0

_STRETCHES = """
SELECT extract(epoch FROM max(finished_at) - min(finished_at))::float8 FROM (
    SELECT finished_at, (row_number() OVER (ORDER BY finished_at) - 1) / $1::int AS stretch
    FROM tasks WHERE status = 3
) ended WHERE stretch < $2::int GROUP BY stretch ORDER BY stretch
"""


class Backlog(msgspec.Struct, frozen=True):
    """Tasks a second over as many completed ones: medians of five drains, and of five stretches of one."""

    few: int
    many: int
    per_second_with_few: float
    per_second_with_many: float


async def measure(site: Site, many: int = MANY, few: int = FEW) -> Backlog:
    """Drain few tasks some times; then let relay and worker have many, until as many are done."""
    with_few = []
    for _ in range(TIMES):
        async with site.scene() as scene:
            await drain(scene, few)
            with_few += await _stretches(scene, few, 1)
    async with site.scene() as scene:
        await preload(scene.database, many)
        parts = await scene.start_roles("relay", "worker")
        await scene.observer.completed(few * TIMES, DRAIN_SECONDS)
        await scene.kill(*parts.values())
        with_many = await _stretches(scene, few, TIMES)
    return Backlog(
        few=few,
        many=many,
        per_second_with_few=round(median(with_few), 1),
        per_second_with_many=round(median(with_many), 1),
    )


async def _stretches(scene: Scene, tasks: int, times: int) -> list[float]:
    """Tell how many a second were done, of the first tasks, of the next as many, and so on."""
    rows = await scene.fetch(_STRETCHES, tasks, times)
    return [(tasks - 1) / seconds for (seconds,) in rows]
