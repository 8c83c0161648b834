"""Tasks as clients and operators see and move them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from storage.channels import DONE, OUTBOX
from storage.errors_column import decode_errors
from storage.listing import TASK_COLUMNS, listing
from storage.model import Priority, Status, Task, TaskPage
from storage.transitions import REPLAYED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.database import Database, Row
    from storage.model import Caller, TaskFilter
    from storage.signals import PostgresSignals

_WHOLE = f"""
SELECT {TASK_COLUMNS}, p.body, r.body FROM tasks t
JOIN payloads p ON p.task_id = t.id LEFT JOIN results r ON r.task_id = t.id
"""

_GET = f"{_WHOLE} WHERE t.id = $1 AND t.tenant = $2"

_GET_MANY = f"""
SELECT {TASK_COLUMNS} FROM tasks t JOIN payloads p ON p.task_id = t.id
WHERE t.id = ANY ($1::uuid[]) AND t.tenant = $2
"""

# The sum keeps the planner from the indexes by status.
_ENDED = f"{_WHOLE} WHERE t.id = ANY ($1::uuid[]) AND t.status + 0 >= 3 LIMIT $2"

_STATUSES = "SELECT id, tenant, status FROM tasks WHERE id = ANY($1::uuid[])"

_CANCEL = """
WITH target AS (
    SELECT id FROM tasks WHERE id = $1 AND tenant = $2 AND status <= 2 FOR NO KEY UPDATE
)
UPDATE tasks t SET
    cancel_requested = true,
    status = CASE WHEN t.status = 2 THEN 2 ELSE 5 END,
    finished_at = CASE WHEN t.status = 2 THEN NULL ELSE clock_timestamp() END,
    queued_at = CASE WHEN t.status = 2 THEN t.queued_at END
FROM target WHERE t.id = target.id RETURNING t.status
"""

# The FAILED outbox rows of earlier dispatches go; they are locked before the task, as everywhere.
_REPLAY = f"""
WITH stale AS (
    SELECT id FROM outbox WHERE task_id = $1 AND status = 1 ORDER BY id FOR UPDATE
), target AS (
    SELECT id FROM tasks WHERE (SELECT count(*) FROM stale) >= 0
    AND id = $1 AND tenant = $2 AND dispatch = $3 AND status IN (4, 5) FOR NO KEY UPDATE
), replayed AS (
    UPDATE tasks t SET {REPLAYED}
    FROM target WHERE t.id = target.id RETURNING t.id, t.dispatch, t.priority, t.tenant
), cleared AS (
    DELETE FROM outbox WHERE id IN (SELECT id FROM stale) AND EXISTS (SELECT FROM replayed)
), noted AS (
    INSERT INTO audit (tenant, action, task_id, dispatch, reason)
    SELECT tenant, 'replay', id, dispatch - 1, $4 FROM replayed
)
INSERT INTO outbox (task_id, dispatch, priority, route)
SELECT r.id, r.dispatch, r.priority, q.name FROM replayed r JOIN queues q ON q.priority = r.priority
RETURNING task_id
"""

_REPLAYED_LAST = """
SELECT dispatch FROM audit WHERE task_id = $1 AND tenant = $2 AND action = 'replay' ORDER BY id DESC LIMIT 1
"""


class PostgresTasks:
    """`pipeline.ports.Tasks` on PostgreSQL."""

    def __init__(self, database: Database, signals: PostgresSignals) -> None:
        self._database = database
        self._signals = signals

    async def get(self, caller: Caller, task_id: UUID) -> Task | None:
        """Read one task, payload and result included."""
        rows = await self._database.fetch(_GET, [task_id, caller.tenant])
        return _whole(rows[0]) if rows else None

    async def get_many(self, caller: Caller, task_ids: Sequence[UUID]) -> dict[UUID, Task]:
        """Read many tasks at once, without payload and result."""
        rows = await self._database.fetch(_GET_MANY, [list(task_ids), caller.tenant])
        return {task.id: task for task in map(_task, rows)}

    async def find(self, caller: Caller, which: TaskFilter) -> TaskPage:
        """List tasks, newest first, without payload and result."""
        rows = await self._database.fetch(*listing(caller, which))
        tasks = [_task(row[:-2]) for row in rows if row[-2]]
        if len(tasks) > which.limit:
            return TaskPage(tasks[: which.limit], tasks[which.limit - 1].id)
        return TaskPage(tasks, UUID(rows[-1][0]) if rows and rows[-1][-1] else None)

    async def statuses(self, task_ids: Sequence[UUID]) -> dict[UUID, tuple[str, Status]]:
        """Read tenant and status of many tasks at once."""
        rows = await self._database.fetch(_STATUSES, [list(task_ids)])
        return {UUID(task_id): (tenant, Status(status)) for task_id, tenant, status in rows}

    async def ended(self, task_ids: Sequence[UUID], most: int) -> dict[UUID, Task]:
        """Read which of many tasks have ended, payload and result included."""
        rows = await self._database.fetch(_ENDED, [list(task_ids), most])
        return {task.id: task for task in map(_whole, rows)}

    async def cancel(self, caller: Caller, task_id: UUID) -> Task | None:
        """Cancel what has not started, ask a running task to stop; the task afterwards."""
        moved = await self._database.fetch(_CANCEL, [task_id, caller.tenant])
        if moved == [(Status.CANCELLED,)]:
            self._signals.notify(DONE)
        return await self.get(caller, task_id)

    async def replay(self, caller: Caller, task_id: UUID, dispatch: int, reason: str) -> Task | None:
        """Hand a FAILED or CANCELLED task out again; a repeat of the same replay only reads."""
        if await self._database.fetch(_REPLAY, [task_id, caller.tenant, dispatch, reason]):
            self._signals.notify(OUTBOX)
        elif await self._database.fetch(_REPLAYED_LAST, [task_id, caller.tenant]) != [(dispatch,)]:
            return None
        return await self.get(caller, task_id)


def _whole(row: Row) -> Task:
    return _task(row[:-2], payload=row[-2], result=row[-1])


def _task(row: Row, payload: bytes | None = None, result: bytes | None = None) -> Task:
    (task_id, kind, kind_version, name, description, tags, priority, status, dispatch, attempt, *counts) = row
    losses, replay, max_retries, timeout_seconds, cancel_requested, created_at, due_at, started_at = counts[
        :8
    ]
    finished_at, reason, errors, tenant = counts[8:]
    return Task(
        id=UUID(task_id),
        kind=kind,
        kind_version=kind_version,
        name=name,
        description=description,
        tags=tuple(tags),
        priority=Priority(priority),
        status=Status(status),
        dispatch=dispatch,
        attempt=attempt,
        losses=losses,
        replay=replay,
        max_retries=max_retries,
        timeout_seconds=timeout_seconds,
        cancel_requested=cancel_requested,
        created_at=created_at,
        due_at=due_at,
        started_at=started_at,
        finished_at=finished_at,
        reason=reason,
        errors=decode_errors(errors),
        payload=payload,
        result=result,
        tenant=tenant,
    )
