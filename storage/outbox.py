"""The relay's hand: a lease on rows until the broker has confirmed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from storage.channels import DONE, OUTBOX
from storage.model import Capacity, OutboxRow, OutboxStatus, Priority
from storage.transitions import ENDING, REPLAYED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.database import Database, Row
    from storage.model import Caller
    from storage.signals import PostgresSignals

# By predicate, never "id > last seen": ids become visible out of order. The shares are reserved for the
# priorities that have work; what one leaves over goes to the others, highest first. As an array, because the
# planner may run a LIMIT subquery of an UPDATE more than once, and may join it by reading the whole outbox;
# counted in the order of the index, or it may read all that is due. A paused queue has no rows but notices of
# its dead tasks, found over their own index and not behind all that it holds back.
_POLL = """
WITH found AS (
    SELECT q.priority, q.paused, least(q.share, d.rows) AS wanted, d.rows
    FROM (SELECT priority, paused, ceil($1::int * (ARRAY[0.6, 0.3, 0.1])[priority])::int AS share
          FROM queues) q
    CROSS JOIN LATERAL (SELECT count(*)::int AS rows FROM (
        (SELECT 1 FROM outbox o WHERE NOT q.paused
         AND o.status = 0 AND o.priority = q.priority AND o.available_at <= now()
         AND (o.leased_until IS NULL OR o.leased_until < now()) ORDER BY o.available_at LIMIT $1)
        UNION ALL
        (SELECT 1 FROM outbox o WHERE q.paused AND o.route = 'tasks.dlq'
         AND o.status = 0 AND o.priority = q.priority AND o.available_at <= now()
         AND (o.leased_until IS NULL OR o.leased_until < now()) ORDER BY o.available_at LIMIT $1)) due) d
), ready AS (
    SELECT priority, paused, rows, greatest(0, least(wanted,
        $1 - (sum(wanted) OVER (ORDER BY priority) - wanted)::int)) AS reserved FROM found
), shares AS (
    SELECT priority, paused, reserved + greatest(0, least(rows - reserved,
        $1 - (sum(reserved) OVER ())::int
           - (sum(rows - reserved) OVER (ORDER BY priority) - (rows - reserved))::int)) AS quota FROM ready
), due AS (
    SELECT o.id FROM shares s CROSS JOIN LATERAL (
        SELECT id FROM outbox o WHERE NOT s.paused
        AND o.status = 0 AND o.priority = s.priority AND o.available_at <= now()
        AND (o.leased_until IS NULL OR o.leased_until < now())
        ORDER BY o.available_at, o.id LIMIT s.quota FOR NO KEY UPDATE SKIP LOCKED) o
), notices AS (
    SELECT o.id FROM shares s CROSS JOIN LATERAL (
        SELECT id FROM outbox o WHERE s.paused AND o.route = 'tasks.dlq'
        AND o.status = 0 AND o.priority = s.priority AND o.available_at <= now()
        AND (o.leased_until IS NULL OR o.leased_until < now())
        ORDER BY o.available_at, o.id LIMIT s.quota FOR NO KEY UPDATE SKIP LOCKED) o
)
UPDATE outbox o SET leased_until = now() + make_interval(secs => $2::float8)
WHERE o.id = ANY (ARRAY(SELECT id FROM due UNION ALL SELECT id FROM notices))
RETURNING o.id, o.task_id, o.dispatch, o.priority, o.route, o.attempts
"""

# A confirmed row may go whoever holds its lease by now. NEW moves on only under the same dispatch, as the row
# has it by then; a task already claimed keeps its status, since a message can overtake this mark.
_SETTLE = """
WITH given AS (
    SELECT * FROM unnest($1::bigint[], $2::float8[]) AS g(id, hold_seconds)
), gone AS (
    DELETE FROM outbox o USING (SELECT * FROM given ORDER BY id) g WHERE o.id = g.id
    RETURNING o.task_id, o.dispatch, g.hold_seconds
), sent AS (
    SELECT task_id, dispatch, max(hold_seconds) AS hold_seconds FROM gone
    GROUP BY task_id, dispatch ORDER BY task_id
)
UPDATE tasks t SET status = 1, queued_at = now() + make_interval(secs => s.hold_seconds)
FROM sent s WHERE t.id = s.task_id AND t.dispatch = s.dispatch AND t.status + 0 < 2 RETURNING 1
"""

_RENEW = """
WITH locked AS (
    SELECT id FROM outbox
    WHERE id = ANY($1::bigint[]) AND status = 0 AND leased_until IS NOT NULL ORDER BY id FOR NO KEY UPDATE
)
UPDATE outbox o SET leased_until = now() + make_interval(secs => $2::float8)
FROM locked l WHERE o.id = l.id RETURNING 1
"""

_RELEASE = """
WITH locked AS (
    SELECT id FROM outbox WHERE id = ANY($1::bigint[]) AND status = 0 ORDER BY id FOR NO KEY UPDATE
)
UPDATE outbox o SET leased_until = NULL, available_at = now() + make_interval(secs => $2::float8)
FROM locked l WHERE o.id = l.id RETURNING 1
"""

# The count ends the lease, by which a repeat of the call is known.
_RETURNED = (
    """
WITH locked AS (
    SELECT id FROM outbox WHERE id = ANY($1::bigint[]) AND status = 0 AND leased_until IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE
), counted AS (
    UPDATE outbox o SET attempts = o.attempts + 1, error = $2, leased_until = NULL,
        status = CASE WHEN o.attempts + 1 >= $3 THEN 1 ELSE 0 END,
        available_at = now() + make_interval(secs => $4::float8)
    FROM locked l WHERE o.id = l.id RETURNING o.id, o.task_id, o.dispatch, o.status
), given_up AS (
    SELECT DISTINCT task_id, dispatch FROM counted WHERE status = 1
), ending AS (
    SELECT t.id, t.dispatch, false AS running, 0 AS place, 4 AS status, 0 AS attempts, 0 AS losses,
           0 AS postponements, NULL::text AS route,
           0::float8 AS due_seconds, 0::float8 AS hold_seconds, NULL::text AS result,
           'undeliverable' AS reason, 'Undeliverable' AS error_type, $2 AS error_message
    FROM given_up g JOIN tasks t ON t.id = g.task_id AND t.dispatch = g.dispatch WHERE t.status IN (0, 1)
    ORDER BY t.id FOR NO KEY UPDATE OF t
)"""
    + ENDING
    + "SELECT c.id FROM counted c WHERE c.status = 1"
)

_COLUMNS = """o.id, o.task_id, o.dispatch, o.priority, o.route, o.attempts, o.status, o.error, o.available_at,
    o.created_at"""

# The literals let the planner use the index of FAILED rows, and not that of due ones, in another order.
_WITH_STATUS = {None: "", OutboxStatus.WAITING: "AND o.status <> 1", OutboxStatus.FAILED: "AND o.status = 1"}

# Row by row from the newest, whatever the statistics say: EXISTS became a join that read all tasks.
_FIND = f"""
SELECT {_COLUMNS} FROM outbox o
WHERE o.id < coalesce($1::bigint, 9223372036854775807)
AND (SELECT t.tenant FROM tasks t WHERE t.id = o.task_id) = $3
"""

_RETRY = f"""
WITH failed AS (
    SELECT o.id, o.task_id, o.dispatch FROM outbox o WHERE o.id = $1 AND o.status = 1
    AND EXISTS (SELECT FROM tasks t WHERE t.id = o.task_id AND t.tenant = $2) FOR NO KEY UPDATE
), replayed AS (
    UPDATE tasks t SET {REPLAYED}
    FROM failed f
    WHERE t.id = f.task_id AND t.dispatch = f.dispatch AND t.status = 4 AND t.reason = 'undeliverable'
    RETURNING t.id, t.dispatch, t.tenant, t.priority
), noted AS (
    INSERT INTO audit (tenant, action, task_id, dispatch, reason)
    SELECT tenant, 'replay', id, dispatch - 1, 'outbox row retried' FROM replayed
)
UPDATE outbox o SET status = 0, attempts = 0, error = NULL, leased_until = NULL, available_at = now(),
    dispatch = coalesce((SELECT dispatch FROM replayed), o.dispatch),
    route = coalesce((SELECT q.name FROM replayed r JOIN queues q ON q.priority = r.priority), o.route)
FROM failed f WHERE o.id = f.id RETURNING {_COLUMNS}
"""

_CAPACITY = """
SELECT q.priority, count(w.id)::int, coalesce(sum(w.free), 0)::int
FROM queues q LEFT JOIN workers w ON w.dead_at IS NULL AND q.name = ANY(w.queues) GROUP BY q.priority
"""


class PostgresOutbox:
    """`pipeline.ports.Outbox` on PostgreSQL."""

    def __init__(self, database: Database, signals: PostgresSignals) -> None:
        self._database = database
        self._signals = signals

    async def poll(self, most: int, lease_seconds: float) -> list[OutboxRow]:
        """Lease due rows, by priority with a reserved share of 6:3:1."""
        return _rows(await self._database.fetch(_POLL, [most, lease_seconds]))

    async def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
        """Delete confirmed rows and mark their tasks PENDING, queued when their queue lets them go."""
        await self._database.fetch(
            _SETTLE, [[row_id for row_id, _ in confirmed], [hold for _, hold in confirmed]]
        )

    async def renew(self, row_ids: Sequence[int], lease_seconds: float) -> None:
        """Lease rows that are leased for longer, from now on."""
        await self._database.fetch(_RENEW, [list(row_ids), lease_seconds])

    async def release(self, row_ids: Sequence[int], delay_seconds: float) -> None:
        """Give leased rows back, due after a delay; costs no attempt."""
        await self._database.fetch(_RELEASE, [list(row_ids), delay_seconds])

    async def returned(
        self, row_ids: Sequence[int], error: str, most: int, delay_seconds: float
    ) -> list[int]:
        """Count an attempt of leased rows; those with `most` become FAILED, with their waiting tasks."""
        failed = await self._database.fetch(_RETURNED, [list(row_ids), error, most, delay_seconds])
        if failed:
            self._signals.notify(DONE)
        return [row_id for (row_id,) in failed]

    async def find(
        self, caller: Caller, *, status: OutboxStatus | None, before: int | None, limit: int
    ) -> list[OutboxRow]:
        """List rows of the caller's tasks, newest first."""
        sql = f"{_FIND} {_WITH_STATUS[status]} ORDER BY o.id DESC LIMIT $2"
        return _rows(await self._database.fetch(sql, [before, limit, caller.tenant]))

    async def retry(self, caller: Caller, row_id: int) -> OutboxRow | None:
        """Let a FAILED row be sent again; a task that it made FAILED is replayed under a new dispatch."""
        rows = await self._database.fetch(_RETRY, [row_id, caller.tenant])
        if rows:
            self._signals.notify(OUTBOX)
        return _rows(rows)[0] if rows else None

    async def capacity(self) -> dict[Priority, Capacity]:
        """Count live workers and their free slots per work queue."""
        rows = await self._database.fetch(_CAPACITY)
        return {Priority(priority): Capacity(workers, free) for priority, workers, free in rows}


def _rows(rows: list[Row]) -> list[OutboxRow]:
    """Read rows, listed or leased, in a fifth of the time that Python takes to build their ids alone."""
    return msgspec.convert(rows, list[OutboxRow])
