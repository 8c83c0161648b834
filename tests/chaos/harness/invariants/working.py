"""Who is at work, and who has died."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.chaos.harness.events import Claimed, DeclaredDead
from tests.chaos.harness.invariants.moving import told
from tests.chaos.harness.invariants.timeline import CLOCKS_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.invariants.timeline import Broken, Timeline


def a_death_is_decided_once(timeline: Timeline) -> Iterator[Broken]:
    """A worker is declared dead once, by one janitor, and takes nothing from then on."""
    declared = Counter(worker for event in timeline.of(DeclaredDead) for worker in event.workers)
    for worker, count in declared.items():
        if count > 1:
            yield worker, f"was declared dead {count} times"
    for claimed in timeline.of(Claimed):
        dead_at = timeline.dead_at.get(claimed.worker)
        if dead_at is None or claimed.began <= dead_at:
            continue
        for reference in claimed.taken:
            # What it had taken before it may ask for again: nothing comes of it.
            change = timeline.claims.get(reference)
            if change is not None and change.at > dead_at + CLOCKS_SECONDS:
                yield (
                    reference[0],
                    f"{told(change)}: taken by worker {claimed.worker}, dead since {dead_at:.3f}",
                )


def a_loss_is_a_death(timeline: Timeline) -> Iterator[Broken]:
    """A loss is counted only where the worker was declared dead, or its process ended uncleanly."""
    for before, change in timeline.moves():
        if change.losses <= before.losses or before.worker is None or before.worker in timeline.dead_at:
            continue
        home = timeline.homes.get(before.worker)
        # A janitor that dies in between declares and does not tell; the process then tells by its exit code.
        if home is not None and (home.exited is None or home.exited.code == 0):
            how = "lives" if home.exited is None else "had ended cleanly"
            yield change.task, f"{told(change)}: lost with worker {before.worker} of {home.by}, which {how}"
