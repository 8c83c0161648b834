"""What the stages and the gateway ask of the ledger; PostgreSQL and memory pass one contract suite.

Every method is one statement and bears repetition: after OutcomeUnknown the same call is made again.
All of them raise storage.errors.Unavailable and OutcomeUnknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from uuid import UUID

    from storage.model import (
        Accepted,
        Backlog,
        Caller,
        Capacity,
        DeadLetter,
        Disconnected,
        Heartbeat,
        Holding,
        KeyReused,
        OutboxRow,
        OutboxStatus,
        Priority,
        Recorded,
        Reference,
        Rescued,
        Run,
        Status,
        Submission,
        Task,
        TaskFilter,
        TaskPage,
        Verdict,
    )


class Submissions(Protocol):
    """The gateway's hand: task and outbox row, both or neither."""

    async def submit(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused]:
        """Write a group in one statement; one answer each, in order, and the same to all of a batch.

        Raises Refused (the whole group; the caller bisects) and LockTimeout (an idempotency key of
        the group is being written by another transaction).
        """

    async def repeated(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused | None]:
        """Answer a group as far as its keys were written before, None for what is new; writes nothing."""

    async def waiting(self, most: int) -> int:
        """Count the tasks that wait for a worker, due in the outbox or at the broker, up to `most`."""


class Tasks(Protocol):
    """Tasks as clients and operators see and move them."""

    async def get(self, caller: Caller, task_id: UUID) -> Task | None:
        """Read one task, payload and result included."""

    async def get_many(self, caller: Caller, task_ids: Sequence[UUID]) -> dict[UUID, Task]:
        """Read many tasks at once, without payload and result; unknown ids are left out."""

    async def find(self, caller: Caller, which: TaskFilter) -> TaskPage:
        """List tasks, newest first, without payload and result.

        A look at `scan_rows` entries may find few tasks, or none, and the page still has a `next`.
        """

    async def statuses(self, task_ids: Sequence[UUID]) -> dict[UUID, tuple[str, Status]]:
        """Read tenant and status of many tasks at once; unknown ids are left out."""

    async def ended(self, task_ids: Sequence[UUID], most: int) -> dict[UUID, Task]:
        """Read which of many tasks have ended, up to `most` of them, payload and result included."""

    async def cancel(self, caller: Caller, task_id: UUID) -> Task | None:
        """Cancel what has not started, ask a running task to stop; the task afterwards, None if unknown.

        A COMPLETED or FAILED task is returned unchanged.
        """

    async def replay(self, caller: Caller, task_id: UUID, dispatch: int, reason: str) -> Task | None:
        """Hand a FAILED or CANCELLED task out again, fenced by the dispatch it replays.

        Returns the task afterwards, also to a repeat of the same replay; None if it is unknown, or if
        `dispatch` is neither the current one of a FAILED or CANCELLED task nor the one replayed last.
        """


class Outbox(Protocol):
    """The relay's hand: a lease on rows until the broker has confirmed them."""

    async def poll(self, most: int, lease_seconds: float) -> list[OutboxRow]:
        """Lease up to `most` due rows, by priority with a reserved share of 6:3:1.

        Of a paused queue only the notices to the DLQ go, neither its tasks nor their retries.
        """

    async def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
        """Delete confirmed rows (id, seconds its queue holds a message) and mark their tasks PENDING."""

    async def renew(self, row_ids: Sequence[int], lease_seconds: float) -> None:
        """Lease rows that are leased for longer, from now on; those given back meanwhile stay given back."""

    async def release(self, row_ids: Sequence[int], delay_seconds: float) -> None:
        """Give leased rows back, due after a delay; costs no attempt."""

    async def returned(
        self, row_ids: Sequence[int], error: str, most: int, delay_seconds: float
    ) -> list[int]:
        """Count an attempt of leased rows that no queue takes; with `most` they become FAILED, returned.

        It ends their lease, and a row that is not leased is not counted.
        A task NEW or PENDING with the same dispatch becomes FAILED with reason `undeliverable`.
        """

    async def find(
        self, caller: Caller, *, status: OutboxStatus | None, before: int | None, limit: int
    ) -> list[OutboxRow]:
        """List rows, newest first."""

    async def retry(self, caller: Caller, row_id: int) -> OutboxRow | None:
        """Let a FAILED row be sent again, and replay its undeliverable task; None if it is not FAILED."""

    async def capacity(self) -> dict[Priority, Capacity]:
        """Count live workers and their free slots per work queue."""


class Runs(Protocol):
    """The worker's hand: from claim to verdict."""

    async def claim(
        self, references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str]
    ) -> list[Run]:
        """Take the references that wait under their dispatch; who is not returned was refused.

        Also returns what this worker already holds, so a lost reply costs nothing. An unknown kind, a
        paused queue and all that a worker declared dead asks for is handed back in the same statement: an
        outbox row with the same dispatch.
        """

    async def record(self, verdicts: Sequence[Verdict]) -> list[Recorded]:
        """Write verdicts, results, dead letters and next outbox rows; one answer each, in order.

        A verdict that was recorded before, and whose reply was lost, is answered as it was then.
        Raises Refused where the data itself cannot be stored.
        """

    async def hand_back(self, references: Sequence[Reference], delay_seconds: float) -> None:
        """Give references that still wait back through the outbox, same dispatch."""

    async def release(self, references: Sequence[Reference], worker_id: UUID) -> None:
        """Dispatch again what the database counts as this worker's and the worker does not hold."""


class Workers(Protocol):
    """Liveness: who is at work, by the database's clock."""

    async def beat(self, beat: Heartbeat) -> bool:
        """Report for duty, registering on the first beat; False where the worker was declared dead."""

    async def held_by(self, worker_id: UUID) -> list[Holding]:
        """List what the database says a worker holds."""

    async def close(self, worker_id: UUID) -> None:
        """Sign off a worker that holds nothing any more."""

    async def disconnected(self) -> list[Disconnected]:
        """List workers not yet declared dead of which the connection that brought the last beat has ended.

        That happens at once when a process dies, and now and then to one that lives. After a restart of the
        database nobody is listed who has not beaten since.
        """

    async def declare_disconnected_dead(self, disconnected: Collection[Disconnected]) -> list[UUID]:
        """Declare dead, once, those of them that have not beaten since."""

    async def declare_dead(self, lease_seconds: float) -> list[UUID]:
        """Declare dead, once, every worker not seen for a lease."""


class Upkeep(Protocol):
    """The janitor's hand: what was lost is dispatched again, what is over is removed."""

    async def rescue(self, most: int, lease_seconds: float, *, hung: bool = True) -> list[Rescued]:
        """Dispatch again runs of dead workers and, if `hung`, those older than timeout + two leases."""

    async def claimed_through(self) -> dict[Priority, datetime]:
        """Tell, per priority, the newest `queued_at` that live workers have claimed."""

    async def unclaimed(self) -> dict[Priority, int]:
        """Tell, per priority, how many references live workers hold that are not yet claimed."""

    async def resend(
        self, priority: Priority, queued_before: datetime | None, most: int, min_age_seconds: float = 0.0
    ) -> int:
        """Send again, with their own dispatch, PENDING tasks without outbox row queued before then.

        None stands for `min_age_seconds` ago by the database's clock.
        """

    async def backlog(self, most: int) -> Backlog:
        """Count due and FAILED outbox rows, each up to `most`, and tell how old the oldest due ones are."""

    async def prune(self, retention_seconds: float, idempotency_ttl_seconds: float, most: int) -> int:
        """Remove finished tasks and unreadable letters older than the retention (0: keep), and expired keys.

        With a task goes all that hangs on it. At most `most` of each; returns how many were removed.
        """

    async def restart_volatile(self) -> int:
        """Send all waiting tasks again and rescue every run: the broker forgot all it held."""


class DeadLetters(Protocol):
    """Evidence of what ended badly."""

    async def bury(self, references: Sequence[Reference]) -> int:
        """Decide over references found in the DLQ: FAILED is kept, waiting is sent again, the rest forgotten.

        Returns how many were sent again.
        """

    async def bury_undecodable(self, body: bytes, headers: Mapping[str, object], error: str) -> None:
        """Keep a message nobody can read: the first 64 KiB and its headers."""

    async def find(
        self, caller: Caller, *, task_id: UUID | None, kind: str | None, before: int | None, limit: int
    ) -> list[DeadLetter]:
        """List dead letters, newest first."""

    async def get(self, caller: Caller, dead_letter_id: int) -> DeadLetter | None:
        """Read one, with the raw bytes of an undecodable message."""


class Subscriber(Protocol):
    """A wake-up: set whenever something may have happened since it was last cleared."""

    async def wait(self, seconds: float) -> None:
        """Return when woken or after `seconds`, whichever is first, and forget the wake-up."""


class Signals(Protocol):
    """Wake-ups between processes; only ever a hint, polling is the truth."""

    def notify(self, channel: str) -> None:
        """Wake the subscribers of a channel soon; never blocks, never fails."""

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[Subscriber]:
        """Listen to a channel for as long as the context is open."""


class Ledger(Protocol):
    """All hands of the ledger together, as a process opens them."""

    @property
    def submissions(self) -> Submissions:
        """The gateway's writes."""

    @property
    def tasks(self) -> Tasks:
        """What clients see."""

    @property
    def outbox(self) -> Outbox:
        """The relay's rows."""

    @property
    def runs(self) -> Runs:
        """The worker's claims and verdicts."""

    @property
    def workers(self) -> Workers:
        """Liveness."""

    @property
    def upkeep(self) -> Upkeep:
        """The janitor's statements."""

    @property
    def dead_letters(self) -> DeadLetters:
        """What ended badly."""

    @property
    def signals(self) -> Signals:
        """Wake-ups."""

    async def ready(self) -> None:
        """Return when the database answers and its schema fits; raises Unavailable or SchemaMismatch.

        Any other StorageError says what an operator has to change.
        """

    async def clock_offset_seconds(self) -> float:
        """Measure how far the database's clock is ahead of this process's, for the time in a UUIDv7."""
