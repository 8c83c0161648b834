"""What a run leaves behind is recorded once, by its own dispatch."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from storage.model import Status
from tests.chaos.harness.invariants.moving import told
from tests.chaos.harness.invariants.timeline import CLOCKS_SECONDS, COMPLETED, FAILED, IN_PROGRESS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.events import Recorded, Ref
    from tests.chaos.harness.history import FinalTask
    from tests.chaos.harness.invariants.timeline import Broken, Timeline

_RESULT = re.compile(r'\s*{\s*"task":\s*"([^"]+)",\s*"dispatch":\s*(\d+)')


def recorded_once(timeline: Timeline) -> Iterator[Broken]:
    """A task ends once per replay, and a run ends once."""
    for task, changes in timeline.changes.items():
        ends = Counter(
            change.replay
            for change in changes
            if change.status >= COMPLETED and (change.old_status or 0) < COMPLETED
        )
        for replay, count in ends.items():
            if count > 1:
                yield task, f"ended {count} times in replay {replay}"
    for (task, dispatch), endings in timeline.endings.items():
        if len(endings) > 1:
            yield task, f"the run of dispatch {dispatch} ended {len(endings)} times"


def no_stale_write(timeline: Timeline) -> Iterator[Broken]:
    """A verdict that is accepted ends the run of its own dispatch, and no other ever moves the task."""
    for run, verdicts in timeline.verdicts.items():
        for recorded, verdict, status in verdicts:
            said = "was refused" if status is None else f"was answered {Status(status).name}"
            wrong = _not_moved(timeline, run, recorded, status) or _moved_another(timeline, run, recorded)
            if wrong:
                yield run[0], f"{verdict} on dispatch {run[1]} {said} at {recorded.at:.3f}, and {wrong}"
    for task in timeline.final.values():
        if task.status == COMPLETED and (found := _RESULT.match(task.result or "")):
            completing = _completing_dispatch(timeline, task)
            if (found[1], int(found[2])) != (task.id, completing):
                owner = f"dispatch {found[2]} of {found[1]}"
                yield task.id, f"completed under dispatch {completing} with the result of {owner}"


def _not_moved(timeline: Timeline, run: Ref, recorded: Recorded, status: int | None) -> str:
    """Look for the end of the run that an accepted verdict tells of."""
    if status is None:
        return ""
    endings = [e for e in timeline.endings.get(run, ()) if e.at <= recorded.at + CLOCKS_SECONDS]
    if not endings:
        now = timeline.at(run[0], recorded.at)
        return f"no run of it had ended: the task was at {told(now) if now else 'nothing'}"
    if status not in {ending.status for ending in endings}:
        return f"its run ended as {told(endings[0])}"
    return ""


def _moved_another(timeline: Timeline, run: Ref, recorded: Recorded) -> str:
    """Look for a later run that ended in the very call that refused a verdict, or repeated its answer.

    Only such ends count that nobody else accounts for: no accepted verdict, no janitor, no heartbeat (which
    dispatches again what its worker does not hold, and adds nothing).
    """
    task, dispatch = run
    for before, change in pairwise(timeline.changes.get(task, ())):
        if not recorded.began - CLOCKS_SECONDS <= change.at <= recorded.at + CLOCKS_SECONDS:
            continue
        later = (task, before.dispatch)
        accounted = (
            before.dispatch <= dispatch
            or before.status != IN_PROGRESS
            or change.losses > before.losses
            or (change.status not in (COMPLETED, FAILED) and change.attempt == before.attempt)
            or later in timeline.rescued
            or any(status is not None for _, _, status in timeline.verdicts.get(later, ()))
        )
        if not accounted:
            return f"in the same call another run ended: {told(change)}"
    return ""


def _completing_dispatch(timeline: Timeline, task: FinalTask) -> int:
    changes = reversed(timeline.changes.get(task.id, ()))
    return next((change.dispatch for change in changes if change.status == COMPLETED), task.dispatch)


def result_is_what_the_handler_returned(timeline: Timeline) -> Iterator[Broken]:
    """A COMPLETED task has a result, and the handler of the run that completed it had come to its end."""
    for task in timeline.final.values():
        if task.status != COMPLETED:
            continue
        dispatch = _completing_dispatch(timeline, task)
        if _RESULT.match(task.result or "") is None:
            yield task.id, f"completed with {(task.result or 'no result')[:80]!r}, which no handler returns"
        elif (task.id, dispatch) not in timeline.ends:
            yield task.id, f"completed under dispatch {dispatch}, whose handler never came to its end"
