"""How the API shows things: names for numbers, UTC for times, payloads and results as the JSON they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID  # noqa: TC003 - msgspec resolves the annotation at run time

import msgspec
from msgspec import UNSET, Raw, UnsetType

from storage.model import ErrorEntry, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.model import Accepted, DeadLetter, OutboxRow, Submission, Task


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task; `payload` and `result` are there where one task is shown, `result` once it is COMPLETED."""

    id: UUID
    kind: str
    kind_version: int
    name: str
    description: str
    tags: tuple[str, ...]
    priority: str
    status: str
    dispatch: int = 1
    attempt: int = 1
    losses: int = 0
    replay: int = 0
    max_retries: int
    timeout_seconds: float
    cancel_requested: bool = False
    created_at: datetime | None
    due_at: datetime | None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: str | None = None
    errors: tuple[ErrorEntry, ...] = ()
    payload: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET

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
            max_retries=submission.max_retries,
            timeout_seconds=submission.timeout_seconds,
            created_at=created_at,
            due_at=due_at,
            payload=Raw(submission.payload),
        )


class BatchView(msgspec.Struct, frozen=True):
    """The tasks of one request, in its order."""

    items: list[TaskView]


class StatusView(msgspec.Struct, frozen=True):
    """Where a task is."""

    id: UUID
    status: str


class OutboxView(msgspec.Struct, frozen=True, kw_only=True):
    """A hand-over that waits for the broker, or FAILED because no queue takes it."""

    id: int
    status: str
    task_id: UUID
    dispatch: int
    priority: str
    route: str
    attempts: int
    error: str | None
    available_at: datetime | None
    created_at: datetime | None

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
    created_at: datetime | None
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
    mode: str
    timeout_seconds: float
    max_retries: int
    payload_schema: dict[str, Any]


class Page(msgspec.Struct, frozen=True):
    """One page of a list; `next` is the cursor of the page after, null on the last one."""

    items: Sequence[Any]
    next: Any


def page(rows: Sequence[Any], limit: int, view: Callable[[Any], Any]) -> Page:
    """Cut a page from rows of which one more was asked for than the page may hold."""
    shown = rows[:limit]
    return Page([view(row) for row in shown], str(shown[-1].id) if len(rows) > limit else None)


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else at.astimezone(UTC)
