"""How a task may move from change to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.execute import LOSSES_UNTIL_ALONE
from storage.model import Status
from tests.chaos.harness.invariants.timeline import (
    CANCELLED,
    CLOCKS_SECONDS,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    NEW,
    PENDING,
    WAITING,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.history import TaskChange
    from tests.chaos.harness.invariants.timeline import Broken, Timeline

EXACT_SECONDS = 0.001
"""Two times of the database differ by what they say, but for the rounding of floats."""

_NOTHING = (0, 0, 0)
_ONE_OF = frozenset({_NOTHING, (1, 0, 0), (0, 1, 0), (0, 0, 1)})

# From a status that is not terminal: what the edge may add to attempt, losses and postponements.
_EDGES = {
    (NEW, PENDING): frozenset({_NOTHING}),
    (PENDING, PENDING): frozenset({_NOTHING}),
    (NEW, IN_PROGRESS): frozenset({_NOTHING}),
    (PENDING, IN_PROGRESS): frozenset({_NOTHING}),
    (IN_PROGRESS, IN_PROGRESS): frozenset({_NOTHING}),
    (IN_PROGRESS, PENDING): _ONE_OF,
    (IN_PROGRESS, COMPLETED): frozenset({_NOTHING}),
    (IN_PROGRESS, FAILED): frozenset({_NOTHING, (0, 1, 0)}),
    (IN_PROGRESS, CANCELLED): _ONE_OF,  # an end of another kind, overridden because a cancel was asked
    (NEW, CANCELLED): frozenset({_NOTHING}),
    (PENDING, CANCELLED): frozenset({_NOTHING}),
    (NEW, FAILED): frozenset({_NOTHING}),
    (PENDING, FAILED): frozenset({_NOTHING}),
}


def state_machine(timeline: Timeline) -> Iterator[Broken]:
    """Until its end a task moves by the edges of the status model, each from where the last one led."""
    for task, changes in timeline.changes.items():
        wrong = _creation(changes[0])
        if wrong:
            yield task, f"{told(changes[0])}: {wrong}"
    for before, change in timeline.moves():
        if (change.old_status, change.old_dispatch) != (before.status, before.dispatch):
            yield change.task, f"{told(change)}: but it was {told(before)}"
        elif before.status < COMPLETED and (wrong := _edge(before, change)):
            yield change.task, f"{told(change)}: {wrong}"


def _creation(first: TaskChange) -> str:
    if first.old_status is not None:
        return "its first change is no creation"
    begun = (first.status, first.dispatch, first.attempt, first.losses, first.postponements, first.replay)
    if begun != (NEW, 1, 1, 0, 0, 0) or first.worker is not None or first.cancel_requested:
        return "not what a task is created as"
    return ""


def _edge(before: TaskChange, change: TaskChange) -> str:
    allowed = _EDGES.get((before.status, change.status))
    if allowed is None:
        return "no edge of the status model"
    added = (
        change.attempt - before.attempt,
        change.losses - before.losses,
        change.postponements - before.postponements,
    )
    if added not in allowed:
        return f"adds {added} to attempt, losses, postponements"
    if change.replay != before.replay:
        return "the replay changes"
    return _held(before, change) or _asked(before, change)


def _held(before: TaskChange, change: TaskChange) -> str:
    """Say what is wrong with the worker: a task IN_PROGRESS has one, and keeps it until its run ends."""
    running = change.status == IN_PROGRESS
    if running and before.status == IN_PROGRESS and change.worker != before.worker:
        return f"taken from worker {before.worker} by {change.worker}"
    return "" if running == (change.worker is not None) else f"worker {change.worker} at this status"


def _asked(before: TaskChange, change: TaskChange) -> str:
    """Say what is wrong with the request to cancel: it comes to a running task, or cancels a waiting one."""
    if change.cancel_requested == before.cancel_requested:
        return ""
    running = before.status == change.status == IN_PROGRESS
    waiting = before.status in WAITING and change.status == CANCELLED
    return "" if change.cancel_requested and (running or waiting) else "the request to cancel changes"


def dispatch_rises_only_with_a_new_hand_over(timeline: Timeline) -> Iterator[Broken]:
    """The dispatch rises by one where a run is given up or a task is replayed, and nowhere else."""
    for before, change in timeline.moves():
        replayed = change.status == NEW
        if before.status >= COMPLETED and not replayed:
            continue  # moves no more: another invariant's
        risen = change.dispatch - before.dispatch
        given_up = before.status == IN_PROGRESS and change.status == PENDING
        if risen != int(given_up or replayed):
            yield change.task, f"{told(change)}: the dispatch was {before.dispatch}"


def terminal_stays_terminal(timeline: Timeline) -> Iterator[Broken]:
    """A task that has ended moves only where a replay was asked, and then begins anew."""
    for before, change in timeline.moves():
        if before.status < COMPLETED:
            continue
        if before.status == COMPLETED or change.status != NEW:
            yield change.task, f"{told(change)}: it had ended"
            continue
        begun = (change.attempt, change.losses, change.postponements, change.cancel_requested, change.reason)
        asked = timeline.replays.get((change.task, before.dispatch), ())
        if begun != (1, 0, 0, False, None) or change.replay != before.replay + 1:
            yield change.task, f"{told(change)}: not what a replay begins as"
        elif all(replay.outcome == "refused" for replay in asked):
            yield change.task, f"{told(change)}: nobody asked to replay dispatch {before.dispatch}"


def attempts_bounded(timeline: Timeline) -> Iterator[Broken]:
    """No attempt beyond MAX_RETRIES + 1, and none burnt but by a handler that had started, or hung."""
    for task, changes in timeline.changes.items():
        final = timeline.final.get(task)
        highest = max(change.attempt for change in changes)
        if final is not None and highest > final.max_retries + 1:
            yield task, f"attempt {highest} with max_retries {final.max_retries}"
    for before, change in timeline.moves():
        if change.attempt <= before.attempt:
            continue
        run = (change.task, before.dispatch)
        started = any(start.at <= change.at + CLOCKS_SECONDS for start in timeline.starts.get(run, ()))
        # Alone in a fresh process a run may time out before its handler starts.
        if not started and run not in timeline.rescued and before.losses < LOSSES_UNTIL_ALONE:
            yield change.task, f"{told(change)}: burnt an attempt, and no handler had started under {run[1]}"


def no_early_start(timeline: Timeline) -> Iterator[Broken]:
    """No run begins before the task is due, by the database's own clock."""
    for before, change in timeline.moves():
        if before.status not in WAITING or change.status != IN_PROGRESS or before.due_seconds is None:
            continue
        early_seconds = before.at + before.due_seconds - change.at
        if early_seconds > EXACT_SECONDS:
            yield change.task, f"{told(change)}: {early_seconds:.3f} s before it was due"


def told(change: TaskChange) -> str:
    """Name a change for a sentence."""
    old = "-" if change.old_status is None else Status(change.old_status).name
    return f"{change.at:.3f} {old} -> {Status(change.status).name} (dispatch {change.dispatch})"
