"""What keeps the ledger whole: rescue, resend, prune, and the evidence of what ended badly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from pipeline.broker.topology import work_route
from pipeline.testing.ledger.state import WAITING, require_storable
from storage.dead_letters import MOST_BODY_BYTES
from storage.model import Backlog, Due, Failure, OutboxStatus, Priority, Reason, Rescued, Status
from storage.upkeep import MOST_LOSSES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from pipeline.testing.ledger.state import State, TaskRow
    from storage.model import Caller, DeadLetter, Reference

DEAD_WORKERS_KEPT_SECONDS = 86_400.0

LOST = Failure("WorkerLost", "its worker died", Reason.WORKER_LOST)
LOST_TOO_OFTEN = replace(LOST, reason=Reason.KILLS_WORKER)
HUNG = Failure("TimeoutError", "its worker did not end it in time", Reason.TIMEOUT)


class MemoryUpkeep:
    """`pipeline.ports.Upkeep` in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def rescue(self, most: int, lease_seconds: float, *, hung: bool = True) -> list[Rescued]:
        """Dispatch again the runs of dead or missing workers, and hung ones where these are asked for."""
        running = [row for row in self._state.tasks.values() if row.status is Status.IN_PROGRESS]
        lost = [row for row in running if self._lost(row)]
        late = [row for row in running if hung and not self._lost(row) and self._hung(row, lease_seconds)]
        rescued = []
        for row in [*lost, *late][:most]:
            reference = row.reference
            (self._end_lost if self._lost(row) else self._end_hung)(row)
            rescued.append(Rescued(reference, row.status))
        return rescued

    def _lost(self, row: TaskRow) -> bool:
        worker = self._state.workers.get(row.worker_id) if row.worker_id else None
        return worker is None or worker.dead_at is not None

    def _hung(self, row: TaskRow, lease_seconds: float) -> bool:
        allowed_seconds = row.asked.timeout_seconds + 2 * lease_seconds
        return row.started_at is not None and row.started_at < self._state.now(-allowed_seconds)

    def _end_lost(self, row: TaskRow) -> None:
        last = row.losses + 1 >= MOST_LOSSES and not row.cancel_requested
        self._state.note(row, LOST_TOO_OFTEN if last else LOST)
        row.losses += 1
        if last:
            self._state.fail(row, LOST_TOO_OFTEN.reason)
        else:
            self._state.dispatch_again(row)

    def _end_hung(self, row: TaskRow) -> None:
        self._state.note(row, HUNG)
        if row.attempt > row.asked.max_retries:
            self._state.fail(row, HUNG.reason)
        else:
            row.attempt += 1
            self._state.dispatch_again(row)

    async def claimed_through(self) -> dict[Priority, datetime]:
        """Tell, per priority, the newest `queued_at` that live workers have claimed."""
        live = [worker.beat for worker in self._state.workers.values() if not worker.dead_at]
        claimed = {
            priority: [at for beat in live if (at := beat.claimed_through[priority - 1])]
            for priority in Priority
        }
        return {priority: max(moments) for priority, moments in claimed.items() if moments}

    async def unclaimed(self) -> dict[Priority, int]:
        """Tell, per priority, how many references the live workers of its queue have not yet claimed."""
        return {
            priority: sum(beat.unclaimed for beat in self._state.live_workers(work_route(priority)))
            for priority in Priority
        }

    async def resend(
        self, priority: Priority, queued_before: datetime | None, most: int, min_age_seconds: float = 0.0
    ) -> int:
        """Send again, with their own dispatch, PENDING tasks that no outbox row stands for."""
        limit = min(queued_before or self._state.now(-min_age_seconds), self._state.now())
        lost = [
            (row.queued_at, row.reference, row)
            for row in self._state.tasks.values()
            if row.asked.priority is priority
            and row.status is Status.PENDING
            and row.queued_at is not None
            and row.queued_at < limit
            and not self._state.waits_in_outbox(row)
        ]
        chosen = sorted(lost, key=lambda entry: entry[:2])[:most]
        for _, _, row in chosen:
            self._send_again(row)
        return len(chosen)

    def _send_again(self, row: TaskRow) -> None:
        """Send a task under its dispatch, no sooner than it is due."""
        now = self._state.now()
        self._state.send(row, available_at=max(now, row.due_at or now))

    async def backlog(self, most: int) -> Backlog:
        """Count due and FAILED outbox rows, each up to `most`, and tell how old the oldest due ones are."""
        rows = self._state.outbox.values()
        failed = sum(row.status is OutboxStatus.FAILED for row in rows)
        return Backlog({priority: self._due(priority, most) for priority in Priority}, min(failed, most))

    def _due(self, priority: Priority, most: int) -> Due:
        now = self._state.now()
        moments = sorted(
            row.available_at
            for row in self._state.outbox.values()
            if row.status is OutboxStatus.WAITING
            and row.priority is priority
            and row.available_at is not None
            and row.available_at <= now
        )
        return Due(len(moments[:most]), (now - moments[0]).total_seconds() if moments else 0.0)

    async def prune(self, retention_seconds: float, idempotency_ttl_seconds: float, most: int) -> int:
        """Remove what is over; each kind of row at most `most` times."""
        state = self._state
        oldest_key = state.now(-idempotency_ttl_seconds)
        keys = [name for name, key in state.keys.items() if key.created_at < oldest_key][:most]
        for name in keys:
            del state.keys[name]
        self._forget_workers()
        if not retention_seconds:
            return len(keys)
        oldest = state.now(-retention_seconds)
        unreadable = [
            letter_id
            for letter_id, kept in state.dead_letters.items()
            if kept.letter.task_id is None and kept.letter.created_at < oldest
        ][:most]
        for letter_id in unreadable:
            del state.dead_letters[letter_id]
        ended = [
            row.asked.id
            for row in state.tasks.values()
            if row.status.terminal and row.finished_at and row.finished_at < oldest
        ][:most]
        for task_id in ended:
            self._forget(task_id)
        return len(keys) + len(unreadable) + len(ended)

    def _forget_workers(self) -> None:
        oldest = self._state.now(-DEAD_WORKERS_KEPT_SECONDS)
        for worker_id, worker in list(self._state.workers.items()):
            if worker.dead_at and worker.dead_at < oldest:
                del self._state.workers[worker_id]

    def _forget(self, task_id: UUID) -> None:
        del self._state.tasks[task_id]
        for row_id in [row.id for row in self._state.outbox.values() if row.task_id == task_id]:
            self._state.drop_sent(row_id)
        for letter_id, kept in list(self._state.dead_letters.items()):
            if kept.letter.task_id == task_id:
                del self._state.dead_letters[letter_id]

    async def restart_volatile(self) -> int:
        """Send all waiting tasks again and rescue every run: the broker forgot all it held."""
        self._state.leased_until.clear()
        for worker in self._state.workers.values():
            worker.dead_at = worker.dead_at or self._state.now()
        forgotten = [
            row
            for row in self._state.tasks.values()
            if row.status is Status.PENDING and not self._state.waits_in_outbox(row)
        ]
        for row in forgotten:
            self._send_again(row)
        return len(forgotten) + len(await self.rescue(most=len(self._state.tasks), lease_seconds=0.0))


class MemoryDeadLetters:
    """`pipeline.ports.DeadLetters` in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def bury(self, references: Sequence[Reference]) -> int:
        """Keep FAILED ones, send waiting ones again, forget the rest; how many were sent again."""
        sent = 0
        for reference in references:
            row = self._state.current(reference, Status.FAILED, *WAITING)
            if row is None:
                continue
            if row.status is Status.FAILED:
                self._state.bury(row)
            else:
                self._state.send(row)
                sent += 1
        return sent

    async def bury_undecodable(self, body: bytes, headers: Mapping[str, object], error: str) -> None:
        """Keep a message nobody can read: the first 64 KiB and its headers."""
        text = msgspec.json.encode(headers, enc_hook=repr).decode()
        require_storable(error, text)
        reason = f"undecodable: {error}"[:500]
        self._state.keep("", reason=reason, body=body[:MOST_BODY_BYTES], headers=text)

    async def find(
        self, caller: Caller, *, task_id: UUID | None, kind: str | None, before: int | None, limit: int
    ) -> list[DeadLetter]:
        """List dead letters, newest first, without the raw bytes and headers of messages."""
        found = [
            replace(letter, body=None, headers=None)
            for letter, tenant in reversed(self._state.dead_letters.values())
            if tenant == caller.tenant
            and task_id in (None, letter.task_id)
            and kind in (None, letter.kind)
            and (before is None or letter.id < before)
        ]
        return found[:limit]

    async def get(self, caller: Caller, dead_letter_id: int) -> DeadLetter | None:
        """Read one, with the raw bytes of an undecodable message."""
        kept = self._state.dead_letters.get(dead_letter_id)
        return kept.letter if kept and kept.tenant == caller.tenant else None
