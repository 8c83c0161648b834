"""What clients do: submit, read, cancel, replay."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pipeline.testing.ledger.state import REPLAYABLE, WAITING, Key, TaskRow, require_storable
from storage.model import Accepted, KeyReused, OutboxStatus, Status, TaskPage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from pipeline.testing.ledger.state import State
    from storage.model import Caller, Submission, Task, TaskFilter


class MemorySubmissions:
    """`pipeline.ports.Submissions` in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def submit(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused]:
        """Write a group; raises Refused for the whole of it where one text cannot be stored."""
        for submission in submissions:
            require_storable(*_texts(submission))
        return [answer for request in _requests(submissions) for answer in self._submit(request)]

    async def repeated(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused | None]:
        """Answer what an earlier request has written under the same key."""
        answers: list[Accepted | KeyReused | None] = []
        for request in _requests(submissions):
            key = self._state.keys.get((request[0].tenant, request[0].key or ""))
            answers += _by_key(request, key) if key else [None] * len(request)
        return answers

    async def waiting(self, most: int) -> int:
        """Count the tasks that are due in the outbox or at the broker, up to `most`."""
        now = self._state.now()
        due = sum(
            row.status is OutboxStatus.WAITING and row.available_at is not None and row.available_at <= now
            for row in self._state.outbox.values()
        )
        queued = sum(
            row.status is Status.PENDING and row.queued_at is not None and row.queued_at <= now
            for row in self._state.tasks.values()
        )
        return min(due + queued, most)

    def _submit(self, request: list[Submission]) -> list[Accepted | KeyReused]:
        key = self._key_of(request)
        if key and key.task_ids[0] != request[0].id:
            return _by_key(request, key)
        return [self._accept(submission) for submission in request]

    def _accept(self, submission: Submission) -> Accepted:
        row = self._state.tasks.get(submission.id)
        if row is None:
            row = self._state.tasks[submission.id] = self._new(submission)
            self._state.send(row, available_at=row.due_at)
        return Accepted(submission.id, created_at=row.created_at)

    def _key_of(self, request: list[Submission]) -> Key | None:
        first = request[0]
        if first.key is None:
            return None
        mine = Key(tuple(submission.id for submission in request), first.fingerprint, self._state.now())
        return self._state.keys.setdefault((first.tenant, first.key), mine)

    def _new(self, submission: Submission) -> TaskRow:
        delay_seconds = submission.delay_seconds
        due_at = self._state.now(delay_seconds) if delay_seconds > 0 else submission.run_at
        return TaskRow(asked=submission, created_at=self._state.now(), due_at=due_at)


def _requests(submissions: Sequence[Submission]) -> list[list[Submission]]:
    return [list(request) for _, request in itertools.groupby(submissions, lambda s: s.batch or s.id)]


def _by_key(request: list[Submission], key: Key) -> list[Accepted | KeyReused]:
    if key.fingerprint != request[0].fingerprint:
        return [KeyReused(key.task_ids[0])] * len(request)
    return [Accepted(first, replayed=True, created_at=key.created_at) for first in key.task_ids]


def _texts(submission: Submission) -> list[str | None]:
    return [
        submission.tenant,
        submission.kind,
        submission.name,
        submission.description,
        *submission.tags,
        submission.payload,
        submission.trace_context,
        submission.key,
        submission.fingerprint,
    ]


class MemoryTasks:
    """`pipeline.ports.Tasks` in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def get(self, caller: Caller, task_id: UUID) -> Task | None:
        """Read one task, payload and result included."""
        row = self._state.seen_by(caller, task_id)
        return row.shown(whole=True) if row else None

    async def get_many(self, caller: Caller, task_ids: Sequence[UUID]) -> dict[UUID, Task]:
        """Read many tasks at once, without payload and result."""
        rows = (self._state.seen_by(caller, task_id) for task_id in task_ids)
        return {row.asked.id: row.shown(whole=False) for row in rows if row}

    async def find(self, caller: Caller, which: TaskFilter) -> TaskPage:
        """List tasks, newest first, without payload and result; pages end where those of PostgreSQL do."""
        walked = [row for row in self._state.tasks.values() if _is_walked(row, caller, which)]
        walked.sort(key=lambda row: row.asked.id, reverse=True)
        tasks = [
            row.shown(whole=False)
            for row in walked[: which.scan_rows]
            if row.asked.tenant == caller.tenant and _matches(row, which)
        ]
        if len(tasks) > which.limit:
            return TaskPage(tasks[: which.limit], tasks[which.limit - 1].id)
        ended = len(walked) < which.scan_rows
        return TaskPage(tasks, None if ended else walked[which.scan_rows - 1].asked.id)

    async def statuses(self, task_ids: Sequence[UUID]) -> dict[UUID, tuple[str, Status]]:
        """Read tenant and status of many tasks at once."""
        rows = (self._state.tasks.get(task_id) for task_id in task_ids)
        return {row.asked.id: (row.asked.tenant, row.status) for row in rows if row}

    async def ended(self, task_ids: Sequence[UUID], most: int) -> dict[UUID, Task]:
        """Read which of many tasks have ended, payload and result included."""
        rows = [self._state.tasks.get(task_id) for task_id in dict.fromkeys(task_ids)]
        ended = [row for row in rows if row and row.status.terminal]
        return {row.asked.id: row.shown(whole=True) for row in ended[:most]}

    async def cancel(self, caller: Caller, task_id: UUID) -> Task | None:
        """Cancel what has not started, ask a running task to stop; the task afterwards."""
        row = self._state.seen_by(caller, task_id)
        if row is None:
            return None
        if not row.status.terminal:
            row.cancel_requested = True
        if row.status in WAITING:
            self._state.finish(row, Status.CANCELLED)
        return row.shown(whole=True)

    async def replay(self, caller: Caller, task_id: UUID, dispatch: int, reason: str) -> Task | None:
        """Hand a FAILED or CANCELLED task out again; a repeat of the same replay only reads."""
        require_storable(reason)
        row = self._state.seen_by(caller, task_id)
        if row is None:
            return None
        if row.dispatch == dispatch and row.status in REPLAYABLE:
            self._drop_failed_rows(task_id)
            self._state.replay(row)
            self._state.send(row)
        return row.shown(whole=True) if row.replayed_dispatch == dispatch else None

    def _drop_failed_rows(self, task_id: UUID) -> None:
        for sent in list(self._state.outbox.values()):
            if sent.task_id == task_id and sent.status is OutboxStatus.FAILED:
                self._state.drop_sent(sent.id)


def _matches(row: TaskRow, which: TaskFilter) -> bool:
    return (
        which.status in (None, row.status)
        and which.priority in (None, row.asked.priority)
        and which.kind in (None, row.asked.kind)
        and (which.tag is None or which.tag in row.asked.tags)
        and (which.created_from is None or row.created_at >= which.created_from)
        and (which.created_to is None or row.created_at < which.created_to)
    )


def _is_walked(row: TaskRow, caller: Caller, which: TaskFilter) -> bool:
    if which.before is not None and row.asked.id >= which.before:
        return False
    if which.tag is not None:
        return row.asked.tenant == caller.tenant and which.tag in row.asked.tags
    if which.status not in (None, Status.COMPLETED):
        return row.asked.tenant == caller.tenant and row.status is which.status
    return which.kind is None or (row.asked.tenant == caller.tenant and row.asked.kind == which.kind)
