"""How the API shows things: names for numbers, UTC for times, payloads and results as the JSON they are."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - msgspec resolves the annotations at run time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar
from uuid import UUID  # noqa: TC003 - as above

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from pipeline.handlers.definition import Mode
from storage.model import ErrorEntry, OutboxStatus, Priority, Status

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable

    from storage.model import Accepted, DeadLetter, OutboxRow, Submission, Task

T = TypeVar("T")


def _members(names: type[enum.Enum]) -> Meta:
    """Say in the schema which names a text may be."""
    return Meta(extra_json_schema={"enum": [*names.__members__]})


Instant = Annotated[datetime, Meta(tz=True)]
PriorityName = Annotated[str, _members(Priority)]
StatusName = Annotated[str, _members(Status), Meta(description="where the task is")]
Dispatch = Annotated[int, Meta(description="number of the hand-over; it only rises")]


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task; `payload` and `result` are there where one task is shown, `result` once it is COMPLETED."""

    id: UUID
    kind: str
    kind_version: int
    name: str
    description: str
    tags: tuple[str, ...]
    priority: PriorityName
    status: StatusName
    dispatch: Dispatch
    attempt: Annotated[int, Meta(description="own failures + 1")]
    losses: Annotated[int, Meta(description="runs that were lost with their worker")]
    replay: Annotated[int, Meta(description="how often an operator has handed it out again")]
    max_retries: Annotated[int, Meta(description="repeats after the first run")]
    timeout_seconds: Annotated[float, Meta(description="longest run")]
    cancel_requested: bool
    created_at: Instant | None
    due_at: Annotated[Instant | None, Meta(description="earliest next start")]
    started_at: Annotated[Instant | None, Meta(description="start of the last run")]
    finished_at: Annotated[Instant | None, Meta(description="when it reached its outcome")]
    reason: Annotated[str | None, Meta(description="why it is FAILED")]
    errors: Annotated[tuple[ErrorEntry, ...], Meta(description="the last 20 failed runs")]
    payload: Annotated[Raw, Meta(description="as it was received")] | UnsetType = UNSET
    result: Annotated[Raw, Meta(description="what the handler returned")] | UnsetType = UNSET

    @classmethod
    def of(cls, task: Task) -> TaskView:
        """Show a task as the ledger has it."""
        return cls(
            id=task.id,
            kind=task.kind,
            kind_version=task.kind_version,
            name=task.name,
            description=task.description,
            tags=task.tags,
            priority=task.priority.name,
            status=task.status.name,
            dispatch=task.dispatch,
            attempt=task.attempt,
            losses=task.losses,
            replay=task.replay,
            max_retries=task.max_retries,
            timeout_seconds=task.timeout_seconds,
            cancel_requested=task.cancel_requested,
            created_at=_utc(task.created_at),
            due_at=_utc(task.due_at),
            started_at=_utc(task.started_at),
            finished_at=_utc(task.finished_at),
            reason=task.reason,
            errors=task.errors,
            payload=UNSET if task.payload is None else Raw(task.payload),
            result=UNSET if task.result is None else Raw(task.result),
        )

    @classmethod
    def of_new(cls, submission: Submission, accepted: Accepted) -> TaskView:
        """Show a task just accepted as the ledger has it, without asking again."""
        created_at, due_at = _utc(accepted.created_at), submission.run_at
        if submission.delay_seconds > 0 and created_at is not None:
            due_at = created_at + timedelta(seconds=submission.delay_seconds)
        return cls(
            id=submission.id,
            kind=submission.kind,
            kind_version=submission.kind_version,
            name=submission.name,
            description=submission.description,
            tags=submission.tags,
            priority=submission.priority.name,
            status=Status.NEW.name,
            dispatch=1,
            attempt=1,
            losses=0,
            replay=0,
            max_retries=submission.max_retries,
            timeout_seconds=submission.timeout_seconds,
            cancel_requested=False,
            created_at=created_at,
            due_at=due_at,
            started_at=None,
            finished_at=None,
            reason=None,
            errors=(),
            payload=Raw(submission.payload),
        )


class BatchView(msgspec.Struct, frozen=True):
    """The tasks of one request, in its order."""

    items: list[TaskView]


class StatusView(msgspec.Struct, frozen=True):
    """Where a task is."""

    id: UUID
    status: StatusName


class OutboxView(msgspec.Struct, frozen=True, kw_only=True):
    """A hand-over that waits for the broker, or FAILED because no queue takes it."""

    id: int
    status: Annotated[str, _members(OutboxStatus)]
    task_id: UUID
    dispatch: Dispatch
    priority: PriorityName
    route: Annotated[str, Meta(description="the queue it goes to")]
    attempts: Annotated[int, Meta(description="how often the broker has returned it")]
    error: str | None
    available_at: Annotated[Instant | None, Meta(description="not sent before")]
    created_at: Instant | None

    @classmethod
    def of(cls, row: OutboxRow) -> OutboxView:
        """Show a row as the ledger has it."""
        return cls(
            id=row.id,
            status=row.status.name,
            task_id=row.task_id,
            dispatch=row.dispatch,
            priority=row.priority.name,
            route=row.route,
            attempts=row.attempts,
            error=row.error,
            available_at=_utc(row.available_at),
            created_at=_utc(row.created_at),
        )


class DeadLetterView(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence; `body` (base64) and `headers` are there where one unreadable message is shown."""

    id: int
    reason: str
    created_at: Instant | None
    task_id: UUID | None
    dispatch: int | None
    kind: str | None
    attempt: int | None
    losses: int | None
    replay: int | None
    errors: tuple[ErrorEntry, ...]
    body: bytes | UnsetType = UNSET
    headers: Raw | UnsetType = UNSET

    @classmethod
    def of(cls, letter: DeadLetter) -> DeadLetterView:
        """Show a dead letter as the ledger has it."""
        return cls(
            id=letter.id,
            reason=letter.reason,
            created_at=_utc(letter.created_at),
            task_id=letter.task_id,
            dispatch=letter.dispatch,
            kind=letter.kind,
            attempt=letter.attempt,
            losses=letter.losses,
            replay=letter.replay,
            errors=letter.errors,
            body=UNSET if letter.body is None else letter.body,
            headers=UNSET if letter.headers is None else Raw(letter.headers),
        )


class KindView(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of task: how it is run, and what its payload must be."""

    kind: str
    version: int
    description: str
    mode: Annotated[str, Meta(extra_json_schema={"enum": [*map(str, Mode)]})]
    timeout_seconds: float
    max_retries: int
    payload_schema: dict[str, Any]


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list; `next` is the cursor of the page after, null on the last one."""

    items: Sequence[T]
    next: str | None


def page(rows: Sequence[Any], limit: int, view: Callable[[Any], T]) -> Page[T]:
    """Cut a page from rows of which one more was asked for than the page may hold."""
    shown = rows[:limit]
    return Page([view(row) for row in shown], str(shown[-1].id) if len(rows) > limit else None)


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else at.astimezone(UTC)
