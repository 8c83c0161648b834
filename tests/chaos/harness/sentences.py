"""What each event says of one task, as a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import singledispatch
from typing import NamedTuple

from storage.model import Status
from tests.chaos.harness.events import (
    Beaten,
    Buried,
    CancelAsked,
    Claimed,
    Counted,
    DeclaredDead,
    Event,
    HandedBack,
    Polled,
    Published,
    Recorded,
    Ref,
    ReplayAsked,
    Rescued,
    Seen,
    Settling,
    Submitted,
)


class Subject(NamedTuple):
    """A task by all that events may know of it."""

    task: str
    name: str | None
    rows: set[int]
    workers: set[str | None]

    def dispatches(self, references: Iterable[Ref]) -> list[int]:
        """List the dispatches of the task among references."""
        return [dispatch for task, dispatch in references if task == self.task]


def dispatches(found: list[int]) -> str:
    """Name dispatches."""
    return f"dispatch {', '.join(map(str, found))}" if found else "nothing"


@singledispatch
def sentences(_event: Event, _subject: Subject) -> Iterator[str]:
    """Say what an event tells of a task: nothing, for most."""
    return iter(())


@sentences.register
def _(event: Polled, subject: Subject) -> Iterator[str]:
    for row, task, dispatch, route in event.rows:
        if task == subject.task:
            yield f"leased row {row}: dispatch {dispatch} by {route}"


@sentences.register
def _(event: Published, subject: Subject) -> Iterator[str]:
    for route, references, publication in event.messages:
        if found := subject.dispatches(references):
            yield f"published {dispatches(found)} by {route}: {publication}{_took(event)}"


@sentences.register
def _(event: Settling, subject: Subject) -> Iterator[str]:
    if found := subject.rows.intersection(event.rows):
        yield f"is about to delete rows {sorted(found)}"


@sentences.register
def _(event: Counted, subject: Subject) -> Iterator[str]:
    if found := subject.rows.intersection(event.rows):
        failed = sorted(found.intersection(event.failed))
        yield f"counted an attempt of rows {sorted(found)}, of which {failed} are FAILED now"


@sentences.register
def _(event: Claimed, subject: Subject) -> Iterator[str]:
    if found := subject.dispatches(event.asked):
        taken = dispatches(subject.dispatches(event.taken))
        yield f"claimed {dispatches(found)} for worker {event.worker}, took {taken}{_took(event)}"


@sentences.register
def _(event: HandedBack, subject: Subject) -> Iterator[str]:
    if found := subject.dispatches(event.references):
        yield f"handed back {dispatches(found)}{_took(event)}"


@sentences.register
def _(event: Buried, subject: Subject) -> Iterator[str]:
    if found := subject.dispatches(event.references):
        yield f"buried {dispatches(found)}{_took(event)}"


@sentences.register
def _(event: Recorded, subject: Subject) -> Iterator[str]:
    for task, dispatch, replay, verdict, status in event.verdicts:
        if task == subject.task:
            answer = "refused" if status is None else Status(status).name
            yield f"recorded {verdict} on dispatch {dispatch}, replay {replay}: {answer}{_took(event)}"


@sentences.register
def _(event: Rescued, subject: Subject) -> Iterator[str]:
    for task, dispatch, status in event.runs:
        if task == subject.task:
            yield f"rescued dispatch {dispatch}: {Status(status).name}"


@sentences.register
def _(event: Beaten, subject: Subject) -> Iterator[str]:
    if not event.alive and event.worker in subject.workers:
        yield f"learned that its worker {event.worker} had been declared dead{_took(event)}"


@sentences.register
def _(event: DeclaredDead, subject: Subject) -> Iterator[str]:
    for worker in subject.workers.intersection(event.workers):
        yield f"declared worker {worker} dead{_took(event)}"


@sentences.register
def _(event: Submitted, subject: Subject) -> Iterator[str]:
    if subject.task in event.ids or subject.name in event.names:
        again = ", as before" if event.repeated else ""
        posted = f"POST of {len(event.names)} under key {event.key}"
        yield f"{posted}: {event.outcome}, {event.status}{again}{_took(event)}"


@sentences.register
def _(event: CancelAsked, subject: Subject) -> Iterator[str]:
    if event.task == subject.task:
        yield f"DELETE: {event.outcome}, {event.status} {event.task_status or ''}{_took(event)}"


@sentences.register
def _(event: ReplayAsked, subject: Subject) -> Iterator[str]:
    if event.task == subject.task:
        yield f"replay of dispatch {event.dispatch}: {event.outcome}, {event.status}{_took(event)}"


@sentences.register
def _(event: Seen, subject: Subject) -> Iterator[str]:
    if event.task == subject.task:
        yield f"GET: {event.task_status} {event.dispatch}, replay {event.replay}{_took(event)}"


_Call = (
    Published
    | Claimed
    | HandedBack
    | Buried
    | Recorded
    | Beaten
    | DeclaredDead
    | Submitted
    | CancelAsked
    | ReplayAsked
    | Seen
)


def _took(event: _Call) -> str:
    """Say how long ago the call had begun that was answered here."""
    return f" (after {event.at - event.began:.3f} s)"
