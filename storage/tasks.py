"""Tasks as clients and operators see and move them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from storage.channels import DONE, OUTBOX
from storage.errors_column import decode_errors
from storage.model import Priority, Status, Task
from storage.transitions import REPLAYED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.database import Database, Row
    from storage.model import Caller, TaskFilter
    from storage.signals import PostgresSignals

_COLUMNS = """t.id, t.kind, t.kind_version, p.name, p.description, p.tags, t.priority, t.status, t.dispatch,
    t.attempt, t.losses, t.replay, t.max_retries, t.timeout_seconds, t.cancel_requested, t.created_at,
    t.due_at, t.started_at, t.finished_at, t.reason, t.errors::text, t.tenant"""

_GET = f"""
SELECT {_COLUMNS}, p.body, r.body FROM tasks t
JOIN payloads p ON p.task_id = t.id LEFT JOIN results r ON r.task_id = t.id
WHERE t.id = $1 AND t.tenant = $2
"""

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
        return _task(rows[0][:-2], payload=rows[0][-2], result=rows[0][-1]) if rows else None

    async def find(self, caller: Caller, which: TaskFilter) -> list[Task]:
        """List tasks, newest first, without payload and result."""
        conditions = {
            "t.tenant = {}": caller.tenant,
            "t.status = {}::smallint": which.status,
            "t.priority = {}::smallint": which.priority,
            "t.kind = {}": which.kind,
            "p.tags @> ARRAY[{}::text] AND p.tags <> '{{}}'": which.tag,
            "t.created_at >= {}::timestamptz": which.created_from,
            "t.created_at < {}::timestamptz": which.created_to,
            "t.id < {}::uuid": which.before,
            "t.id = ANY({}::uuid[])": None if which.ids is None else list(which.ids),
        }
        given = {condition: value for condition, value in conditions.items() if value is not None}
        where = " AND ".join(text.format(f"${number}") for number, text in enumerate(given, 1))
        # The literal lets the planner use the partial index.
        where += " AND t.status <> 3" if which.status not in (None, Status.COMPLETED) else ""
        # Found first and joined then: a merge join reads all payloads that are newer than the page.
        tagged = "JOIN payloads p ON p.task_id = t.id" if which.tag is not None else ""
        found = f"SELECT t.* FROM tasks t {tagged} WHERE {where} ORDER BY t.id DESC LIMIT {which.limit:d}"
        sql = f"SELECT {_COLUMNS} FROM ({found}) t JOIN payloads p ON p.task_id = t.id ORDER BY t.id DESC"
        return [_task(row) for row in await self._database.fetch(sql, list(given.values()))]

    async def statuses(self, task_ids: Sequence[UUID]) -> dict[UUID, tuple[str, Status]]:
        """Read tenant and status of many tasks at once."""
        rows = await self._database.fetch(_STATUSES, [list(task_ids)])
        return {UUID(task_id): (tenant, Status(status)) for task_id, tenant, status in rows}

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
