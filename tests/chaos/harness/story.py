"""The whole story of one task, a line for each thing that happened to it, by time."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from storage.model import Status
from tests.chaos.harness.events import (
    Booted,
    Delivered,
    Exited,
    FaultBegan,
    FaultEnded,
    Letting,
    Submitted,
)
from tests.chaos.harness.sentences import Subject, dispatches, sentences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.history import Effect, History, OutboxChange, TaskChange

_Line = tuple[float, str, str]
"""When, who, what."""

NEAR_SECONDS = 1.0
"""Faults so long before its first and after its last change belong to the story of a task."""


def tell(history: History, task_id: str) -> str:
    """Tell all that is known of a task; times are those of the events. Empty of what is no task."""
    changes = [change for change in history.tasks if change.task == task_id]
    rows = [change for change in history.outbox if change.task == task_id]
    finals = [task for task in history.final.tasks if task.id == task_id]
    name = finals[0].name if finals else _posted_as(history, task_id)
    subject = Subject(task_id, name, {row.row for row in rows}, {change.worker for change in changes})
    lines: list[_Line] = [
        *((change.at, "database", _changed(change)) for change in changes),
        *((row.at, "database", _sent(row)) for row in rows),
        *((effect.at, "handler", _left(effect)) for effect in history.effects if effect.task == task_id),
        *_said(history, subject),
    ]
    if not lines:
        return ""
    lines += _around(history, min(lines)[0], max(lines)[0], {who for _, who, _ in lines})
    lines.sort(key=itemgetter(0))
    told = [f"{at:10.3f}  {who:<14} {what}" for at, who, what in lines]
    end = [f"{'at the end':>10}  {'database':<14} {_fields(task)}" for task in finals]
    letters = [
        f"{'at the end':>10}  {'database':<14} dead letter of dispatch {dispatch}: {reason}"
        for task, dispatch, reason in history.final.dead_letters
        if task == task_id
    ]
    return "\n".join([f"the story of {task_id}, {name}", *told, *end, *letters])


def _posted_as(history: History, task_id: str) -> str | None:
    for event in history.events:
        if isinstance(event, Submitted) and task_id in event.ids:
            return event.names[event.ids.index(task_id)]
    return None


def _changed(change: TaskChange) -> str:
    old = "" if change.old_status is None else f"{Status(change.old_status).name} {change.old_dispatch} -> "
    told = (
        f"{old}{Status(change.status).name} {change.dispatch} (attempt {change.attempt}, "
        f"losses {change.losses}, postponements {change.postponements}, replay {change.replay})"
    )
    if change.worker:
        told += f" by worker {change.worker}"
    if change.cancel_requested:
        told += ", cancel requested"
    if change.reason:
        told += f", reason {change.reason}"
    if change.due_seconds is not None and change.due_seconds > 0:
        told += f", due in {change.due_seconds:.3f} s"
    return told


def _sent(row: OutboxChange) -> str:
    told = f"outbox {row.operation} row {row.row}: dispatch {row.dispatch} by {row.route}"
    if row.status or row.attempts:
        told += f", status {row.status}, attempts {row.attempts}"
    return told + (f", due in {row.due_seconds:.3f} s" if row.due_seconds > 0 else "")


def _left(effect: Effect) -> str:
    return f"{effect.what} of dispatch {effect.dispatch}, attempt {effect.attempt}, in pid {effect.pid}"


def _fields(task: object) -> str:
    return str(task)[:300]


def _said(history: History, subject: Subject) -> Iterator[_Line]:
    deliveries: dict[tuple[str, int], list[int]] = {}
    for event in history.events:
        if isinstance(event, Delivered):
            brought = subject.dispatches(event.references)
            if brought:
                deliveries[event.by, event.delivery] = brought
                number = f"delivery {event.delivery} from {event.queue}"
                yield event.at, event.by, f"{number} brings {dispatches(brought)}"
        elif isinstance(event, Letting):
            if brought := deliveries.get((event.by, event.delivery), []):
                yield event.at, event.by, f"{event.how} of delivery {event.delivery}, {dispatches(brought)}"
        else:
            for what in sentences(event, subject):
                yield event.at, event.by, what


def _around(history: History, first: float, last: float, who: set[str]) -> Iterator[_Line]:
    """Tell the faults of the time, and the ends of the processes that had a part in it."""
    pids = {event.pid for event in history.events if isinstance(event, Booted) and event.by in who}
    for event in history.events:
        if isinstance(event, Exited) and event.pid in pids:
            yield event.at, event.by, f"{event.program}, pid {event.pid}, ended with {event.code}"
        elif not first - NEAR_SECONDS <= event.at <= last + NEAR_SECONDS:
            continue
        elif isinstance(event, FaultBegan):
            yield event.at, event.by, f"fault {event.number} begins: {event.fault} {event.target}"
        elif isinstance(event, FaultEnded):
            bit = "bit" if event.bit else "did not bite"
            yield (
                event.at,
                event.by,
                f"fault {event.number} is over: {event.fault} {event.target}, {bit}: {event.proof}",
            )
