"""Brings the times of the database exactly to the scale of the events, by what the calls themselves tell.

The database was asked for its clock during the run, but on a busy machine nobody knows how late an answer is.
Each call that moved a task says more: the change lies between its beginning and its answer. Thousands of such
intervals leave a few milliseconds; a call that repeats one whose reply was lost is outvoted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from storage.model import Status
from tests.chaos.harness.events import Claimed, Recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.events import Ref
    from tests.chaos.harness.history import History, OutboxChange, TaskChange


ENOUGH_CALLS = 20
"""Fewer that agree outvote nobody."""


def aligned(history: History) -> History:
    """Move the changes of the database by what is missing to the scale of the events."""
    seconds = missing_seconds(history)
    if not seconds:
        return history

    def moved(change: TaskChange | OutboxChange) -> TaskChange | OutboxChange:
        return msgspec.structs.replace(change, at=change.at + seconds)

    tasks, outbox = [moved(change) for change in history.tasks], [moved(change) for change in history.outbox]
    aligned: History = msgspec.structs.replace(history, tasks=tasks, outbox=outbox)
    return aligned


def missing_seconds(history: History) -> float:
    """Tell by how much the database's times are too early; 0 where the calls do not contradict it."""
    ends = [end for low, high in _intervals(history) for end in ((low, 0), (high, 1))]
    open_now = most = 0
    low = high = 0.0
    best = False
    for at, closes in sorted(ends):
        if closes:
            if best:
                high, best = at, False
            open_now -= 1
        else:
            open_now += 1
            if open_now > most:
                most, low, best = open_now, at, True
    return 0.0 if most < ENOUGH_CALLS or low <= 0.0 <= high else (low + high) / 2


def _intervals(history: History) -> Iterator[tuple[float, float]]:
    """List, for each call, how much its change may have to be moved to lie within it."""
    taken: dict[tuple[Ref, str | None], float] = {}
    ended: dict[tuple[Ref, int], float] = {}
    for change in history.tasks:
        if change.status == Status.IN_PROGRESS != change.old_status:
            taken[(change.task, change.dispatch), change.worker] = change.at
        elif change.old_status == Status.IN_PROGRESS != change.status and change.old_dispatch is not None:
            ended[(change.task, change.old_dispatch), change.status] = change.at
    for event in history.events:
        if isinstance(event, Claimed):
            moments = [taken.get((reference, event.worker)) for reference in event.taken]
        elif isinstance(event, Recorded):
            moments = [
                ended.get(((task, dispatch), status))
                for task, dispatch, _, _, status in event.verdicts
                if status is not None
            ]
        else:
            continue
        yield from ((event.began - at, event.at - at) for at in moments if at is not None)
