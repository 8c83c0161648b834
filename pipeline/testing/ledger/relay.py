"""What the relay does with outbox rows: lease, settle, give back, give up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from pipeline.broker.topology import DLQ, work_route
from pipeline.testing.ledger.state import WAITING, require_storable
from storage.channels import OUTBOX
from storage.model import Capacity, Failure, OutboxStatus, Priority, Reason, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.testing.ledger.state import State
    from storage.model import Caller, OutboxRow

TENTHS = {Priority.HIGH: 6, Priority.MEDIUM: 3, Priority.LOW: 1}


class MemoryOutbox:
    """`pipeline.ports.Outbox` in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def poll(self, most: int, lease_seconds: float) -> list[OutboxRow]:
        """Lease due rows in shares of 6:3:1 by priority; of a paused queue only notices of dead tasks."""
        leased = _shared_out({priority: self._due(priority) for priority in Priority}, most)
        for row in leased:
            self._state.leased_until[row.id] = self._state.now(lease_seconds)
        return leased

    def _due(self, priority: Priority) -> list[OutboxRow]:
        paused = work_route(priority) in self._state.paused
        now = self._state.now()
        due = [
            (row.available_at, row.id, row)
            for row in self._state.outbox.values()
            if row.priority is priority
            and (row.route == DLQ or not paused)
            and row.status is OutboxStatus.WAITING
            and row.available_at is not None
            and row.available_at <= now
            and self._state.leased_until.get(row.id, now) <= now
        ]
        return [row for _, _, row in sorted(due, key=lambda entry: entry[:2])]

    async def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
        """Delete confirmed rows and mark their tasks PENDING, queued when their queue lets them go."""
        for row_id, hold_seconds in confirmed:
            sent = self._state.drop_sent(row_id)
            if sent and (row := self._state.current(sent.reference, *WAITING)):
                row.status, row.queued_at = Status.PENDING, self._state.now(hold_seconds)

    async def renew(self, row_ids: Sequence[int], lease_seconds: float) -> None:
        """Lease rows that are leased for longer, from now on."""
        for row in self._waiting(row_ids):
            if row.id in self._state.leased_until:
                self._state.leased_until[row.id] = self._state.now(lease_seconds)

    async def release(self, row_ids: Sequence[int], delay_seconds: float) -> None:
        """Give leased rows back, due after a delay; costs no attempt."""
        for row in self._waiting(row_ids):
            self._put_off(row, delay_seconds)

    async def returned(
        self, row_ids: Sequence[int], error: str, most: int, delay_seconds: float
    ) -> list[int]:
        """Count an attempt of leased rows; those with `most` become FAILED, with their waiting tasks."""
        require_storable(error)
        failed = []
        for row in self._waiting([row_id for row_id in row_ids if row_id in self._state.leased_until]):
            counted = replace(row, attempts=row.attempts + 1, error=error)
            if counted.attempts < most:
                self._put_off(counted, delay_seconds)
            else:
                self._give_up(counted, error)
                failed.append(counted.id)
        return failed

    def _waiting(self, row_ids: Sequence[int]) -> Iterator[OutboxRow]:
        rows = (self._state.outbox.get(row_id) for row_id in row_ids)
        return (row for row in rows if row and row.status is OutboxStatus.WAITING)

    def _put_off(self, row: OutboxRow, delay_seconds: float) -> None:
        self._state.leased_until.pop(row.id, None)
        self._state.outbox[row.id] = replace(row, available_at=self._state.now(delay_seconds))

    def _give_up(self, sent: OutboxRow, error: str) -> None:
        self._state.leased_until.pop(sent.id, None)
        self._state.outbox[sent.id] = replace(sent, status=OutboxStatus.FAILED)
        if row := self._state.current(sent.reference, *WAITING):
            self._state.note(row, Failure("Undeliverable", error, Reason.UNDELIVERABLE))
            self._state.fail(row, Reason.UNDELIVERABLE)

    async def find(
        self, caller: Caller, status: OutboxStatus | None, before: int | None, limit: int
    ) -> list[OutboxRow]:
        """List rows of the caller's tasks, newest first."""
        found = [
            row
            for row in reversed(self._state.outbox.values())
            if self._state.seen_by(caller, row.task_id)
            and status in (None, row.status)
            and (before is None or row.id < before)
        ]
        return found[:limit]

    async def retry(self, caller: Caller, row_id: int) -> OutboxRow | None:
        """Let a FAILED row be sent again; a task that it made FAILED is replayed under a new dispatch."""
        sent = self._state.outbox.get(row_id)
        if (
            sent is None
            or sent.status is not OutboxStatus.FAILED
            or not self._state.seen_by(caller, sent.task_id)
        ):
            return None
        row = self._state.current(sent.reference, Status.FAILED)
        if row and row.reason == Reason.UNDELIVERABLE:
            self._state.replay(row)
            # By the work queue: a replay waits in no retry queue, and a route nobody can declare stays dead.
            sent = replace(sent, dispatch=row.dispatch, route=work_route(row.asked.priority))
        sent = replace(sent, status=OutboxStatus.WAITING, attempts=0, error=None)
        self._put_off(sent, 0.0)
        self._state.signals.notify(OUTBOX)
        return self._state.outbox[row_id]

    async def capacity(self) -> dict[Priority, Capacity]:
        """Count live workers and their free slots per work queue."""
        beats = {priority: self._state.live_workers(work_route(priority)) for priority in Priority}
        return {
            priority: Capacity(len(listening), sum(beat.free for beat in listening))
            for priority, listening in beats.items()
        }


def _shared_out(due: dict[Priority, list[OutboxRow]], most: int) -> list[OutboxRow]:
    """Take each priority's reserved share, then fill up with the highest that is left."""
    quotas: dict[Priority, int] = {}
    for priority, rows in due.items():
        share = -(-most * TENTHS[priority] // 10)  # rounded up, so that a small poll reserves something too
        quotas[priority] = min(len(rows), share, most - sum(quotas.values()))
    for priority, rows in due.items():
        quotas[priority] += min(len(rows) - quotas[priority], most - sum(quotas.values()))
    return [row for priority, rows in due.items() for row in rows[: quotas[priority]]]
