"""The tables in memory, and the transitions that several hands share, each written once."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID  # noqa: TC003 - msgspec resolves the annotations at run time

import msgspec

from pipeline.broker.topology import DLQ, work_route
from storage.channels import DONE, OUTBOX
from storage.errors import Refused
from storage.model import (
    DeadLetter,
    ErrorEntry,
    Failure,
    Heartbeat,
    OutboxRow,
    OutboxStatus,
    Reason,
    Reference,
    Status,
    Submission,
    Task,
    Verdict,
)

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.testing.ledger.signals import MemorySignals
    from storage.model import Caller

ERRORS_KEPT = 20

WAITING = (Status.NEW, Status.PENDING)
REPLAYABLE = (Status.FAILED, Status.CANCELLED)


class TaskRow(msgspec.Struct, kw_only=True):
    """A row of `tasks`: what was asked for, and all that changes in the life of a task."""

    asked: Submission
    created_at: datetime
    due_at: datetime | None = None
    status: Status = Status.NEW
    dispatch: int = 1
    attempt: int = 1
    losses: int = 0
    postponements: int = 0
    replay: int = 0
    replayed_dispatch: int | None = None
    cancel_requested: bool = False
    worker_id: UUID | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: str | None = None
    errors: tuple[ErrorEntry, ...] = ()
    result: str | None = None
    recorded: dict[int, tuple[Verdict, Status]] = {}

    @property
    def reference(self) -> Reference:
        """The present hand-over."""
        return Reference(self.asked.id, self.dispatch)

    def shown(self, *, whole: bool) -> Task:
        """Give the task as the API shows it; payload and result only if `whole`."""
        asked = self.asked
        return Task(
            **{name: getattr(asked, name) for name in _FROM_SUBMISSION},
            **{name: getattr(self, name) for name in _FROM_ROW},
            payload=asked.payload.encode() if whole else None,
            result=self.result.encode() if whole and self.result is not None else None,
        )


_FROM_SUBMISSION = tuple(
    name for name in Task.__struct_fields__ if name in Submission.__struct_fields__ and name != "payload"
)
_FROM_ROW = tuple(
    name for name in Task.__struct_fields__ if name in TaskRow.__struct_fields__ and name != "result"
)


class Key(msgspec.Struct, frozen=True):
    """A row of `idempotency_keys`."""

    task_ids: tuple[UUID, ...]
    fingerprint: str
    created_at: datetime


class WorkerRow(msgspec.Struct):
    """A row of `workers`: the last heartbeat, and whether it came too late."""

    beat: Heartbeat
    last_seen: datetime
    connected: bool = True
    dead_at: datetime | None = None


class Kept(NamedTuple):
    """A dead letter and whose it is."""

    letter: DeadLetter
    tenant: str


class State:
    """All rows of one ledger; time is that of `clock`, counted from the moment of construction."""

    def __init__(self, clock: Clock, signals: MemorySignals) -> None:
        self.clock = clock
        self.signals = signals
        self._start = datetime.now(UTC) - timedelta(seconds=clock.now())
        self.tasks: dict[UUID, TaskRow] = {}
        self.keys: dict[tuple[str, str], Key] = {}
        self.outbox: dict[int, OutboxRow] = {}
        self.leased_until: dict[int, datetime] = {}
        self.dead_letters: dict[int, Kept] = {}
        self.workers: dict[UUID, WorkerRow] = {}
        self.paused: set[str] = set()
        self._row_ids = itertools.count(1)
        self._dead_letter_ids = itertools.count(1)

    def now(self, later_seconds: float = 0.0) -> datetime:
        """Tell the ledger's time, or a moment after it."""
        return self._start + timedelta(seconds=self.clock.now() + later_seconds)

    def current(self, reference: Reference, *statuses: Status) -> TaskRow | None:
        """Find the task of a reference if the dispatch is its present one and its status one of these."""
        row = self.tasks.get(reference.task_id)
        return row if row and row.dispatch == reference.dispatch and row.status in statuses else None

    def seen_by(self, caller: Caller, task_id: UUID) -> TaskRow | None:
        """Find a task of the caller's."""
        row = self.tasks.get(task_id)
        return row if row and row.asked.tenant == caller.tenant else None

    def live_workers(self, queue: str) -> list[Heartbeat]:
        """List the last heartbeats of live workers that listen to a queue."""
        return [
            worker.beat
            for worker in self.workers.values()
            if not worker.dead_at and queue in worker.beat.queues
        ]

    def send(self, row: TaskRow, route: str | None = None, available_at: datetime | None = None) -> None:
        """Put the present dispatch into the outbox, for the work queue and now unless said otherwise."""
        now = self.now()
        row_id = next(self._row_ids)
        self.outbox[row_id] = OutboxRow(
            id=row_id,
            task_id=row.asked.id,
            dispatch=row.dispatch,
            priority=row.asked.priority,
            route=route or work_route(row.asked.priority),
            available_at=available_at or now,
            created_at=now,
        )
        self.signals.notify(OUTBOX)

    def drop_sent(self, row_id: int) -> OutboxRow | None:
        """Delete an outbox row with its lease."""
        self.leased_until.pop(row_id, None)
        return self.outbox.pop(row_id, None)

    def waits_in_outbox(self, row: TaskRow) -> bool:
        """Tell whether a relay will still send the present dispatch."""
        return any(
            sent.reference == row.reference and sent.status is OutboxStatus.WAITING
            for sent in self.outbox.values()
        )

    def dispatch_again(
        self, row: TaskRow, route: str | None = None, due_seconds: float = 0.0, hold_seconds: float = 0.0
    ) -> Status:
        """End a run that another is to follow: CANCELLED if that was asked, else PENDING under dispatch+1.

        The next start is due after `due_seconds`, of which the outbox row is held back `hold_seconds`.
        """
        if row.cancel_requested:
            return self.finish(row, Status.CANCELLED)
        row.status, row.dispatch = Status.PENDING, row.dispatch + 1
        row.worker_id = row.queued_at = None
        row.due_at = self.now(due_seconds)
        self.send(row, route, self.now(hold_seconds))
        return row.status

    def finish(self, row: TaskRow, status: Status) -> Status:
        """Move a task to a terminal status."""
        row.status, row.finished_at = status, self.now()
        row.worker_id = row.queued_at = None
        self.signals.notify(DONE)
        return status

    def fail(self, row: TaskRow, reason: Reason) -> Status:
        """End a task as FAILED with a dead letter and a notice to the DLQ; CANCELLED if that was asked."""
        if row.cancel_requested:
            return self.finish(row, Status.CANCELLED)
        row.reason = reason.value
        self.finish(row, Status.FAILED)
        self.bury(row)
        self.send(row, DLQ)
        return row.status

    def note(self, row: TaskRow, failure: Failure) -> None:
        """Append to the errors of a task."""
        entry = ErrorEntry(
            self.now(), row.dispatch, row.attempt, failure.type, failure.message, failure.reason.value
        )
        row.errors = (*row.errors, entry)[-ERRORS_KEPT:]

    def bury(self, row: TaskRow) -> None:
        """Write the dead letter of a FAILED task, once per dispatch."""
        if any(
            (kept.letter.task_id, kept.letter.dispatch) == row.reference
            for kept in self.dead_letters.values()
        ):
            return
        self.keep(
            row.asked.tenant,
            reason=row.reason or "",
            task_id=row.asked.id,
            dispatch=row.dispatch,
            kind=row.asked.kind,
            attempt=row.attempt,
            losses=row.losses,
            replay=row.replay,
            errors=row.errors,
        )

    def keep(self, tenant: str, **fields: Any) -> None:
        """Write a dead letter."""
        letter = DeadLetter(id=next(self._dead_letter_ids), created_at=self.now(), **fields)
        self.dead_letters[letter.id] = Kept(letter, tenant)

    def replay(self, row: TaskRow) -> None:
        """Start a task afresh, NEW under dispatch+1; its past stays in the dead letters only."""
        row.replayed_dispatch = row.dispatch
        row.status, row.dispatch, row.replay = Status.NEW, row.dispatch + 1, row.replay + 1
        row.attempt, row.losses, row.postponements = 1, 0, 0
        row.errors, row.reason, row.result, row.cancel_requested = (), None, None, False
        row.recorded = {}
        row.due_at = row.queued_at = row.started_at = row.finished_at = None


def require_storable(*texts: str | None) -> None:
    """Raise Refused for what PostgreSQL takes in no text column: NUL, and what UTF-8 cannot encode."""
    for text in texts:
        if text is None:
            continue
        if "\x00" in text:
            raise Refused(f"NUL in {text[:40]!r}: text holds any character but that one")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Refused(f"lone surrogate in {text[:40]!r}: text must be encodable as UTF-8") from error
