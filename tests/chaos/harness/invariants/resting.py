"""When the faults are over everything comes to its end, and nothing is left."""

from __future__ import annotations

import signal
from itertools import pairwise
from typing import TYPE_CHECKING

from storage.model import Status
from tests.chaos.harness.events import (
    Beaten,
    CancelAsked,
    DeclaredDead,
    Polled,
    RunEnded,
    Seen,
    Submitted,
)
from tests.chaos.harness.invariants.timeline import COMPLETED, NEW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.events import Exited
    from tests.chaos.harness.invariants.timeline import Broken, Incarnation, Timeline

END_SECONDS = 60.0
"""Within this time after the last fault, or after it was handed over, every task has ended."""

SILENT_SECONDS = 30.0
"""Longer than this no process may live without progress once the faults are over."""

DEADLY = ("chaos.exit", "chaos.segfault", "chaos.hog")
"""Kinds whose handlers end the process that they run in."""

BOOT_SECONDS = 10.0
"""A signal that comes while the interpreter starts ends it as signals do."""

_PROGRESS: dict[str, type] = {"relay": Polled, "worker": Beaten, "janitor": DeclaredDead}


def everything_ends(timeline: Timeline) -> Iterator[Broken]:
    """Every task has ended by the end of the run, and within 60 s of the last fault."""
    ended = timeline.of(RunEnded)
    if not ended:
        yield "run", "it never ended"
    elif not ended[-1].at_rest:
        yield "run", f"it was not at rest at its end: {ended[-1].said}"
    for task in timeline.final.values():
        if task.status < COMPLETED:
            yield task.id, f"{task.name}, a {task.kind}, is {Status(task.status).name} at the end"
    for task_id, changes in timeline.changes.items():
        last = changes[-1]
        begun = [
            change.at + max(0.0, change.due_seconds or 0.0) for change in changes if change.status == NEW
        ]
        handed_over = max(begun, default=changes[0].at)
        late_seconds = last.at - max(timeline.last_fault_at, handed_over) - END_SECONDS
        if last.status >= COMPLETED and late_seconds > 0:
            yield task_id, f"ended at {last.at:.3f}, {late_seconds:.1f} s too late"


def nothing_is_left(timeline: Timeline) -> Iterator[Broken]:
    """At the end no row waits, no message lies in a queue, no transaction is open, no worker holds a task."""
    final = timeline.history.final
    for row, task, dispatch, route, status in final.outbox:
        if status == 0:
            yield task, f"outbox row {row} of dispatch {dispatch} by {route} still waits"
    for queue, (ready, unacked) in final.queues.items():
        if ready or unacked:
            yield "run", f"{queue} holds {ready} ready and {unacked} unacknowledged messages"
    if final.idle_in_transaction:
        yield "run", f"{final.idle_in_transaction} sessions are idle in a transaction"
    for left in final.tasks:
        if left.worker is not None:
            yield left.id, f"worker {left.worker} still holds it"


def conservation(timeline: Timeline) -> Iterator[Broken]:
    """Every task that was created is there at the end, once, as its last change left it; no other is."""
    for task in timeline.changes.keys() - timeline.final.keys():
        yield task, "was created, and is not there at the end"
    for task in timeline.final.keys() - timeline.changes.keys():
        yield task, "is there at the end, and was never created"
    for task in timeline.final.keys() & timeline.changes.keys():
        final, last = timeline.final[task], timeline.changes[task][-1]
        kept = (final.status, final.dispatch, final.attempt, final.losses, final.replay)
        if kept != (last.status, last.dispatch, last.attempt, last.losses, last.replay):
            yield task, f"is {kept} at the end, and its last change made it {last}"
    if len(timeline.final) != len(timeline.history.final.tasks):
        yield "run", "a task is there twice at the end"


def living_processes_make_progress(timeline: Timeline) -> Iterator[Broken]:
    """Once all is up and faults are over no process lives for 30 s without doing what it is there for."""
    up_at = min((post.began for post in timeline.of(Submitted)), default=0.0)
    answered = sorted(
        event.at
        for kind in (Submitted, CancelAsked, Seen)
        for event in timeline.of(kind)
        if getattr(event, "outcome", "ok") == "ok"
    )
    for incarnation in timeline.incarnations:
        if incarnation.exited is not None and incarnation.exited.at <= timeline.ended_at:
            continue
        since = max(up_at, timeline.last_fault_at, incarnation.started_at)
        role = incarnation.program.partition("-")[0]
        if role == "gateway":
            silent = _longest_silence(answered, since, timeline.load_ended_at)
        elif role in _PROGRESS:
            own = timeline.processes.get(incarnation.by or "", ())
            done = [event.at for event in own if isinstance(event, _PROGRESS[role])]
            silent = _longest_silence(done, since, timeline.ended_at)
        else:
            continue
        if silent > SILENT_SECONDS:
            yield incarnation.program, f"pid {incarnation.pid} lived for {silent:.1f} s without progress"


def _longest_silence(moments: list[float], since: float, until: float) -> float:
    if until <= since:
        return 0.0
    within = [since, *(moment for moment in moments if since < moment < until), until]
    return max(later - earlier for earlier, later in pairwise(within))


def exits_are_clean(timeline: Timeline) -> Iterator[Broken]:
    """Who is asked to end by SIGTERM ends, with code 0."""
    for incarnation in timeline.incarnations:
        exited = incarnation.exited
        if exited is None:
            if timeline.stopped:
                yield incarnation.program, f"pid {incarnation.pid} did not end when all were asked to"
        elif exited.wanted and exited.code != 0 and not _excused(timeline, incarnation, exited):
            yield (
                exited.program,
                f"pid {exited.pid}, asked to end, ended with {exited.code} at {exited.at:.3f}",
            )


def _excused(timeline: Timeline, incarnation: Incarnation, exited: Exited) -> bool:
    """Tell a process that had only begun to start, or that its own work brought down meanwhile."""
    if exited.code == -signal.SIGTERM and exited.at - incarnation.started_at < BOOT_SECONDS:
        return True
    return any(
        start.pid == exited.pid and run not in timeline.ends and _is_deadly(timeline, start.task)
        for run, starts in timeline.starts.items()
        for start in starts
    )


def _is_deadly(timeline: Timeline, task: str) -> bool:
    return task in timeline.final and timeline.final[task].kind in DEADLY
