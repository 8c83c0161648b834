"""Walks tasks into any status by the ports alone, and tells all that can be seen of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4

from storage.model import Caller, Reference, Status
from tests.support import builders

if TYPE_CHECKING:
    from pipeline.ports import Ledger
    from storage.model import DeadLetter, OutboxRow, Run, Submission, Task, Verdict

KINDS = ("echo", "sleep")
LEASE_SECONDS = 30.0


class Seen(NamedTuple):
    """A task with all that hangs on it."""

    task: Task
    rows: list[OutboxRow]
    dead_letters: list[DeadLetter]


class Walk:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.worker_id = uuid4()

    async def new(self, **changes: Any) -> Task:
        submission = builders.submission(**changes)
        await self.submit(submission)
        return await self.task(submission.id, submission.tenant)

    async def pending(self, hold_seconds: float = 0.0, **changes: Any) -> Task:
        task = await self.new(**changes)
        await self.relay(hold_seconds)
        return await self.task(task.id, task.tenant)

    async def running(self, **changes: Any) -> Run:
        return await self.claim(await self.pending(**changes))

    async def ended(self, verdict: Verdict) -> Task:
        """The task after a verdict, with its notices out of the outbox."""
        await self.ledger.runs.record([verdict])
        await self.relay()
        return await self.task(verdict.run.task_id, verdict.run.tenant)

    async def completed(self, **changes: Any) -> Task:
        return await self.ended(builders.done(await self.running(**changes)))

    async def failed(self, **changes: Any) -> Task:
        return await self.ended(builders.dead(await self.running(**changes)))

    async def cancelled(self, **changes: Any) -> Task:
        task = await self.pending(**changes)
        await self.ledger.tasks.cancel(Caller(task.tenant), task.id)
        return await self.task(task.id, task.tenant)

    async def undeliverable(self, **changes: Any) -> Task:
        """A task that its FAILED outbox row made FAILED."""
        task = await self.new(**changes)
        await self.ledger.outbox.returned([(await self.leased(task.id)).id], "no queue", 1, 0.0)
        return await self.task(task.id, task.tenant)

    async def to(self, status: Status, **changes: Any) -> Task:
        """A task of any status; IN_PROGRESS belongs to this walk's worker."""
        if status is Status.IN_PROGRESS:
            run = await self.running(**changes)
            return await self.task(run.task_id, run.tenant)
        task: Task = await getattr(self, status.name.lower())(**changes)
        assert task.status is status
        return task

    async def submit(self, *submissions: Submission) -> None:
        await self.ledger.submissions.submit(submissions)

    async def relay(self, hold_seconds: float = 0.0) -> list[OutboxRow]:
        """Send all that is due, as a relay with a healthy broker does."""
        rows = await self.ledger.outbox.poll(1000, LEASE_SECONDS)
        await self.ledger.outbox.settle([(row.id, hold_seconds) for row in rows])
        return rows

    async def leased(self, task_id: UUID) -> OutboxRow:
        """The one due row of a task, leased; all other rows are not."""
        rows = await self.ledger.outbox.poll(1000, LEASE_SECONDS)
        await self.ledger.outbox.release([row.id for row in rows if row.task_id != task_id], 0.0)
        [row] = [row for row in rows if row.task_id == task_id]
        return row

    async def claim(self, task: Task, worker_id: UUID | None = None) -> Run:
        """Claim for a worker that has reported for duty, this walk's unless another is named."""
        worker_id = worker_id or self.worker_id
        await self.ledger.workers.beat(builders.beat(worker_id))
        [run] = await self.ledger.runs.claim([reference(task)], worker_id, KINDS)
        return run

    async def tries_to_claim(self, *references: Reference) -> list[Run]:
        """Claim as a worker that holds nothing."""
        return await self.ledger.runs.claim(references, uuid4(), KINDS)

    async def task(self, task_id: UUID, tenant: str = "") -> Task:
        task = await self.ledger.tasks.get(Caller(tenant), task_id)
        assert task
        return task

    async def rows(self, task_id: UUID, tenant: str = "") -> list[OutboxRow]:
        rows = await self.ledger.outbox.find(Caller(tenant), status=None, before=None, limit=1000)
        return [row for row in rows if row.task_id == task_id]

    async def seen(self, task_id: UUID, tenant: str = "") -> Seen:
        letters = await self.ledger.dead_letters.find(
            Caller(tenant), task_id=task_id, kind=None, before=None, limit=1000
        )
        return Seen(await self.task(task_id, tenant), await self.rows(task_id, tenant), letters)


def reference(task: Task) -> Reference:
    return Reference(task.id, task.dispatch)
