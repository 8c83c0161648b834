"""Slow handlers: 50 ms of waiting each, 500 slots, one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.ours.drain import SHORT_TASKS, SLOTS, Drain, drain

if TYPE_CHECKING:
    from benchmarks.scene import Site

SECONDS = 0.05


class Slow(msgspec.Struct, frozen=True):
    """The drain, and how many tasks a second the slots would run if they never stood empty."""

    drain: Drain
    most_per_second: float


async def measure(site: Site, tasks: int) -> Slow:
    """Drain tasks of the kind `sleep`."""
    async with site.scene() as scene:
        found = await drain(
            scene,
            tasks,
            kind="sleep",
            payload={"seconds": SECONDS},
            echoed=False,
            settings=SHORT_TASKS,
        )
        return Slow(drain=found, most_per_second=SLOTS / SECONDS)
