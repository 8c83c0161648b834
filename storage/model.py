"""What the ledger keeps: tasks, runs, verdicts, outbox rows, dead letters, workers."""

from __future__ import annotations

import enum
from datetime import datetime  # noqa: TC003 - msgspec resolves the annotations at run time
from typing import Annotated, NamedTuple
from uuid import UUID  # noqa: TC003 - as above

import msgspec


class Priority(enum.IntEnum):
    """How urgent a task is; it names the work queue, `tasks.high` and so on."""

    HIGH = 1
    MEDIUM = 2
    LOW = 3


class Status(enum.IntEnum):
    """Where a task is; the last three are terminal."""

    NEW = 0
    PENDING = 1
    IN_PROGRESS = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def terminal(self) -> bool:
        """Whether nothing but a replay moves the task any more."""
        return self >= Status.COMPLETED


class OutboxStatus(enum.IntEnum):
    """Whether a relay may still send a row."""

    WAITING = 0
    FAILED = 1


class Reason(enum.StrEnum):
    """Why a run failed; of a FAILED task, why no other follows."""

    ERROR = "error"
    TIMEOUT = "timeout"
    UNDELIVERABLE = "undeliverable"
    WORKER_LOST = "worker-lost"
    KILLS_WORKER = "kills-worker"
    RESULT_UNSTORABLE = "result_unstorable"


class Reference(NamedTuple):
    """All that travels through the broker: which task, and which hand-over of it."""

    task_id: UUID
    dispatch: int


class Rescued(NamedTuple):
    """A run that was lost or hung, and what its task is now: PENDING again, or ended."""

    reference: Reference
    status: Status


class Caller(msgspec.Struct, frozen=True):
    """Whose rows a read or a write may touch."""

    tenant: str = ""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A task as a client asked for it; `payload` is JSON text, kept as it was received.

    `run_at` or `delay_seconds` (by the database's clock) postpones the first start.
    With `key`, a second submission of the same `fingerprint` is answered with the first task.
    Tasks of one batch stand side by side and share key and fingerprint; `batch` is the id of the first.
    """

    id: UUID
    kind: str
    payload: str
    max_retries: int
    timeout_seconds: float
    kind_version: int = 1
    name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    priority: Priority = Priority.MEDIUM
    run_at: datetime | None = None
    delay_seconds: float = 0.0
    trace_context: str | None = None
    tenant: str = ""
    key: str | None = None
    fingerprint: str = ""
    batch: UUID | None = None


class Accepted(msgspec.Struct, frozen=True):
    """A submission is durable; `replayed` when an earlier one with the same key was found instead."""

    task_id: UUID
    replayed: bool = False
    created_at: datetime | None = None


class KeyReused(msgspec.Struct, frozen=True):
    """The idempotency key belongs to another body; nothing was written."""

    task_id: UUID


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One claimed hand-over of a task: what its handler needs and what fences its verdict.

    `queued_at` is when it was queued, or, where no relay has marked that yet, when it was made or due.
    `waited_seconds` is how long it has waited since it was due, by the database's clock.
    """

    reference: Reference
    kind: str
    kind_version: int = 1
    payload: bytes
    priority: Priority
    attempt: int
    max_retries: int
    timeout_seconds: float
    losses: int = 0
    postponements: int = 0
    replay: int = 0
    tenant: str = ""
    trace_context: str | None = None
    queued_at: datetime | None = None
    waited_seconds: float = 0.0

    @property
    def task_id(self) -> UUID:
        """The task it is a run of."""
        return self.reference.task_id

    @property
    def dispatch(self) -> int:
        """The hand-over it answers for."""
        return self.reference.dispatch


class Failure(msgspec.Struct, frozen=True):
    """What went wrong in user code, as text that is safe to store."""

    type: str
    message: str
    reason: Reason = Reason.ERROR


class Done(msgspec.Struct, frozen=True, tag=True):
    """The handler returned; `result` is JSON text."""

    run: Run
    result: str = "null"


class Retry(msgspec.Struct, frozen=True, tag=True):
    """The task starts again not before `delay_seconds` from now, by way of `route`.

    `waits_in_outbox` tells where the delay is spent: in the outbox row, or in a retry queue.
    A retry that `burns_attempt` raises the attempt; otherwise it counts as a postponement.
    """

    run: Run
    failure: Failure
    route: str
    delay_seconds: float
    waits_in_outbox: bool = False
    burns_attempt: bool = True


class Dead(msgspec.Struct, frozen=True, tag=True):
    """No run is left to try: FAILED, a dead letter, and a notice to the DLQ."""

    run: Run
    failure: Failure


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """The run stopped because its cancellation was asked."""

    run: Run


class Interrupted(msgspec.Struct, frozen=True, tag=True):
    """The worker, not the task, ended the run: it is handed out again at once and burns nothing."""

    run: Run


Verdict = Done | Retry | Dead | Cancelled | Interrupted


class Recorded(msgspec.Struct, frozen=True):
    """What became of a verdict: the status it led to, or None where a later dispatch had taken over."""

    status: Status | None


class ErrorEntry(msgspec.Struct, frozen=True):
    """One failed run in a task's history; the last 20 are kept."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    dispatch: int
    attempt: int
    type: str
    message: str
    reason: str


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task as the API shows it. `result` is JSON bytes and present once COMPLETED."""

    id: UUID
    kind: str
    kind_version: int
    name: str
    description: str
    tags: tuple[str, ...]
    priority: Priority
    status: Status
    dispatch: int
    attempt: int
    losses: int
    replay: int
    max_retries: int
    timeout_seconds: float
    cancel_requested: bool
    created_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    reason: str | None
    errors: tuple[ErrorEntry, ...] = ()
    payload: bytes | None = None
    result: bytes | None = None
    tenant: str = ""


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks a list shows; `before` is `next` of the page before.

    No page takes a look at more than `scan_rows` entries of the index that it walks.
    """

    status: Status | None = None
    priority: Priority | None = None
    kind: str | None = None
    tag: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    before: UUID | None = None
    limit: int = 50
    scan_rows: int = 10_000


class TaskPage(msgspec.Struct, frozen=True):
    """Tasks of a list, newest first; with `next` the list goes on, however few there are."""

    tasks: list[Task]
    next: UUID | None = None


class OutboxRow(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A hand-over that waits for a broker's confirm; its fields stand as the database returns them."""

    id: int
    task_id: UUID
    dispatch: int
    priority: Priority
    route: str
    attempts: int = 0
    status: OutboxStatus = OutboxStatus.WAITING
    error: str | None = None
    available_at: datetime | None = None
    created_at: datetime | None = None

    @property
    def reference(self) -> Reference:
        """What the broker is to carry."""
        return Reference(self.task_id, self.dispatch)


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of a task that is FAILED, or of a message that nobody could read (`body`, no task)."""

    id: int
    reason: str
    created_at: datetime
    task_id: UUID | None = None
    dispatch: int | None = None
    kind: str | None = None
    attempt: int | None = None
    losses: int | None = None
    replay: int | None = None
    errors: tuple[ErrorEntry, ...] = ()
    body: bytes | None = None
    headers: str | None = None


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker reports of itself.

    `free` is the most slots that were free at once since the last beat, `unclaimed` the references
    it has received and not yet claimed, `claimed_through` the newest `queued_at` claimed per priority.
    """

    worker_id: UUID
    slots: int
    running: int
    free: int
    unclaimed: int
    queues: tuple[str, ...]
    claimed_through: tuple[datetime | None, datetime | None, datetime | None] = (None, None, None)


class Disconnected(NamedTuple):
    """A worker whose connection to the database has ended, and when its last heartbeat came."""

    worker_id: UUID
    last_seen: datetime


class Holding(NamedTuple):
    """One run that the database counts as a worker's."""

    reference: Reference
    cancel_requested: bool


class Due(NamedTuple):
    """Outbox rows that a relay may send now, and for how long the oldest one has been due."""

    rows: int
    oldest_seconds: float


class Backlog(NamedTuple):
    """What the outbox holds: due rows per priority, and FAILED rows."""

    due: dict[Priority, Due]
    failed: int


class Capacity(NamedTuple):
    """How many live workers listen to a queue, and how many slots they last reported free."""

    workers: int
    free: int
