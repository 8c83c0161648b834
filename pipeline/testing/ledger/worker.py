"""What a worker does: claim, record, give back, and report that it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from pipeline.broker.topology import work_route
from pipeline.testing.ledger.state import WAITING, WorkerRow, require_storable
from storage.model import (
    Cancelled,
    Dead,
    Disconnected,
    Done,
    Holding,
    Interrupted,
    Recorded,
    Reference,
    Retry,
    Run,
    Status,
)
from storage.runs import DECLARED_DEAD_SECONDS, PAUSED_SECONDS, UNKNOWN_KIND_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from pipeline.testing.ledger.state import State, TaskRow
    from storage.model import Heartbeat, Verdict


class MemoryRuns:
    """`pipeline.ports.Runs` in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def claim(
        self, references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str]
    ) -> list[Run]:
        """Take what waits under its dispatch, and what this worker already holds from a lost reply."""
        claims = [self._claim(reference, worker_id, kinds) for reference in dict.fromkeys(references)]
        return [run for run in claims if run]

    def _claim(self, reference: Reference, worker_id: UUID, kinds: Sequence[str]) -> Run | None:
        row = self._state.current(reference, *WAITING, Status.IN_PROGRESS)
        if row is None or row.worker_id not in (None, worker_id):
            return None
        if row.status in WAITING:
            later_seconds = self._later_seconds(row, worker_id, kinds)
            if later_seconds is not None:
                self._send_later(row, later_seconds)
                return None
            row.status, row.worker_id = Status.IN_PROGRESS, worker_id
        row.started_at = self._state.now()
        return _run(row)

    def _later_seconds(self, row: TaskRow, worker_id: UUID, kinds: Sequence[str]) -> float | None:
        if work_route(row.asked.priority) in self._state.paused:
            return PAUSED_SECONDS
        if row.due_at and row.due_at > self._state.now():
            return (row.due_at - self._state.now()).total_seconds()
        if row.asked.kind not in kinds:
            return UNKNOWN_KIND_SECONDS
        worker = self._state.workers.get(worker_id)
        return DECLARED_DEAD_SECONDS if worker and worker.dead_at else None

    def _send_later(self, row: TaskRow, delay_seconds: float) -> None:
        self._state.send(row, available_at=self._state.now(delay_seconds))

    async def record(self, verdicts: Sequence[Verdict]) -> list[Recorded]:
        """Write verdicts with everything that follows from them; a stale dispatch changes nothing."""
        for verdict in verdicts:
            match verdict:
                case Done(result=result):
                    require_storable(result)
                case Retry(failure=failure) | Dead(failure=failure):
                    require_storable(failure.type, failure.message)
        return [Recorded(self._record(verdict)) for verdict in verdicts]

    def _record(self, verdict: Verdict) -> Status | None:
        row = self._state.current(verdict.run.reference, Status.IN_PROGRESS)
        if row:
            row.recorded[verdict.run.dispatch] = verdict, self._end(row, verdict)
        return self._recorded(verdict)

    def _recorded(self, verdict: Verdict) -> Status | None:
        row = self._state.tasks.get(verdict.run.task_id)
        known, status = row.recorded.get(verdict.run.dispatch, (None, None)) if row else (None, None)
        return status if known == verdict else None

    def _end(self, row: TaskRow, verdict: Verdict) -> Status:
        match verdict:
            case Done(result=result):
                row.result = result
                return self._state.finish(row, Status.COMPLETED)
            case Cancelled():
                return self._state.finish(row, Status.CANCELLED)
            case Interrupted():
                return self._state.dispatch_again(row)
            case Dead(failure=failure):
                self._state.note(row, failure)
                return self._state.fail(row, failure.reason)
            case Retry(route=route, delay_seconds=delay_seconds):
                self._state.note(row, verdict.failure)
                row.attempt += verdict.burns_attempt
                row.postponements += not verdict.burns_attempt
                hold_seconds = delay_seconds if verdict.waits_in_outbox else 0.0
                return self._state.dispatch_again(row, route, delay_seconds, hold_seconds)
            case _:
                assert_never(verdict)

    async def hand_back(self, references: Sequence[Reference], delay_seconds: float) -> None:
        """Give references that still wait back through the outbox, same dispatch."""
        for reference in references:
            if row := self._state.current(reference, *WAITING):
                self._send_later(row, delay_seconds)

    async def release(self, references: Sequence[Reference], worker_id: UUID) -> None:
        """Dispatch again what the ledger counts as this worker's and the worker does not hold."""
        for reference in references:
            row = self._state.current(reference, Status.IN_PROGRESS)
            if row and row.worker_id == worker_id:
                self._state.dispatch_again(row)


def _run(row: TaskRow) -> Run:
    asked = row.asked
    return Run(
        reference=Reference(asked.id, row.dispatch),
        kind=asked.kind,
        kind_version=asked.kind_version,
        payload=asked.payload.encode(),
        priority=asked.priority,
        attempt=row.attempt,
        max_retries=asked.max_retries,
        timeout_seconds=asked.timeout_seconds,
        losses=row.losses,
        postponements=row.postponements,
        replay=row.replay,
        tenant=asked.tenant,
        trace_context=asked.trace_context,
        queued_at=min(row.queued_at or _made_at(row), row.started_at or row.created_at),
        waited_seconds=_waited_seconds(row),
    )


def _made_at(row: TaskRow) -> datetime:
    """Tell from when on a task could be queued for the first time."""
    return max(row.due_at or row.created_at, row.created_at)


def _waited_seconds(row: TaskRow) -> float:
    started_at = row.started_at or row.created_at  # a claim has set it
    replayed = row.due_at is None and row.replay
    due_at = row.queued_at or started_at if replayed else _made_at(row)
    return (started_at - due_at).total_seconds()


class MemoryWorkers:
    """`pipeline.ports.Workers` in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def beat(self, beat: Heartbeat) -> bool:
        """Report for duty; False where this worker was declared dead."""
        known = self._state.workers.get(beat.worker_id)
        if known and known.dead_at:
            return False
        self._state.workers[beat.worker_id] = WorkerRow(beat, self._state.now())
        return True

    async def held_by(self, worker_id: UUID) -> list[Holding]:
        """List what the ledger says a worker holds."""
        return [
            Holding(row.reference, row.cancel_requested)
            for row in self._state.tasks.values()
            if row.worker_id == worker_id
        ]

    async def close(self, worker_id: UUID) -> None:
        """Sign off a worker that holds nothing any more."""
        self._state.workers.pop(worker_id, None)

    async def disconnected(self) -> list[Disconnected]:
        """List workers not yet declared dead of which the connection that brought the last beat has ended."""
        return [
            Disconnected(worker_id, row.last_seen)
            for worker_id, row in self._state.workers.items()
            if not row.dead_at and not row.connected
        ]

    async def declare_disconnected_dead(self, disconnected: Collection[Disconnected]) -> list[UUID]:
        """Declare dead, once, those of them that have not beaten since."""
        return self._declare_dead(lambda row: (row.beat.worker_id, row.last_seen) in disconnected)

    async def declare_dead(self, lease_seconds: float) -> list[UUID]:
        """Declare dead, once, every worker not seen for a lease."""
        oldest = self._state.now(-lease_seconds)
        return self._declare_dead(lambda row: row.last_seen < oldest)

    def _declare_dead(self, is_dead: Callable[[WorkerRow], bool]) -> list[UUID]:
        dead = [row for row in self._state.workers.values() if not row.dead_at and is_dead(row)]
        for row in dead:
            row.dead_at = self._state.now()
        return [row.beat.worker_id for row in dead]
