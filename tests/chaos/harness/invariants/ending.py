"""How tasks end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.model import Reason, Status
from storage.upkeep import MOST_LOSSES
from tests.chaos.harness.events import CancelAsked
from tests.chaos.harness.invariants.moving import told
from tests.chaos.harness.invariants.timeline import (
    CANCELLED,
    CLOCKS_SECONDS,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    PENDING,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.history import FinalTask
    from tests.chaos.harness.invariants.timeline import Broken, Timeline


def cancel_is_kept(timeline: Timeline) -> Iterator[Broken]:
    """Who is answered CANCELLED finds it cancelled; a run asked to stop ends COMPLETED or CANCELLED."""
    for asked in timeline.of(CancelAsked):
        if asked.task_status == Status.CANCELLED.name:
            changes = timeline.changes.get(asked.task, ())
            if not any(c.status == CANCELLED and c.at <= asked.at + CLOCKS_SECONDS for c in changes):
                yield asked.task, f"was answered CANCELLED at {asked.at:.3f}, and had not been cancelled"
    for before, change in timeline.moves():
        stopped = before.status == IN_PROGRESS and before.cancel_requested
        if stopped and change.status in (PENDING, FAILED):
            yield change.task, f"{told(change)}: though its cancellation was asked"


def dead_letter_has_reason(timeline: Timeline) -> Iterator[Broken]:
    """Each end as FAILED has a dead letter with a reason, and each dead letter such an end."""
    letters: dict[tuple[str, int | None], str] = {
        (task, dispatch): reason for task, dispatch, reason in timeline.history.final.dead_letters if task
    }
    failed: set[tuple[str, int | None]] = {
        (change.task, change.dispatch)
        for changes in timeline.changes.values()
        for change in changes
        if change.status == FAILED
    }
    for task, dispatch in sorted(failed):
        if not letters.get((task, dispatch)):
            yield task, f"FAILED under dispatch {dispatch}, and no dead letter says why"
    for task, dispatch in letters.keys() - failed:
        yield task, f"has a dead letter of dispatch {dispatch}, and never FAILED under it"
    for final in timeline.final.values():
        if final.status == FAILED and not (final.reason and final.errors):
            yield final.id, f"FAILED with reason {final.reason} and {final.errors} errors"


def outcome_is_the_expected_one(timeline: Timeline) -> Iterator[Broken]:
    """A task becomes what its work makes of it, unless it was cancelled or its workers died."""
    posts = timeline.posts
    for task in timeline.final.values():
        if task.status < COMPLETED or task.name not in posts:
            continue
        post, place = posts[task.name][0]
        expected = post.expected[place]
        outcome = Status(task.status).name
        if outcome == expected or _excused(timeline, task):
            continue
        yield task.id, f"{task.name}, a {task.kind}, is {outcome} ({task.reason}), expected {expected}"


def _excused(timeline: Timeline, task: FinalTask) -> bool:
    cancels = [asked for asked in timeline.cancels.get(task.id, ()) if asked.outcome != "refused"]
    if task.status == FAILED:
        # That each of the losses was a death is another invariant's.
        return task.reason == Reason.KILLS_WORKER and task.losses >= MOST_LOSSES
    # Who ignores that it is stopped, by a cancel or a drain before its timeout, and ends, is done.
    return bool(cancels) or _drained(timeline, task)


def _drained(timeline: Timeline, task: FinalTask) -> bool:
    """Tell whether its worker had been asked to end when it was completed."""
    for change in timeline.changes.get(task.id, ()):
        claim = timeline.claims.get((task.id, change.dispatch))
        home = timeline.homes.get(claim.worker or "") if claim is not None else None
        if change.status == COMPLETED and home is not None:
            return change.at > timeline.asked_to_end_at(home)
    return False
