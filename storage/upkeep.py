"""The janitor's hand: what was lost is dispatched again, what is over is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.channels import DONE, OUTBOX
from storage.model import Backlog, Due, Priority, Rescued
from storage.transitions import ENDED, ENDING, ended

if TYPE_CHECKING:
    from datetime import datetime

    from storage.database import Database
    from storage.signals import PostgresSignals

MOST_LOSSES = 5

# Found over the small index of running tasks first; the guard is asked again on the locked row, since the
# run may have ended in between.
_RESCUE = (
    """
WITH lost AS MATERIALIZED (
    SELECT t.id, t.dispatch, t.worker_id, w.id IS NULL AS worker_gone
    FROM tasks t LEFT JOIN workers w ON w.id = t.worker_id AND w.dead_at IS NULL
    WHERE t.worker_id IS NOT NULL
    AND (w.id IS NULL
         OR $4::bool AND t.started_at < now() - make_interval(secs => t.timeout_seconds + 2 * $2::float8))
), ending AS (
    SELECT t.id, t.dispatch, true AS running, 0 AS place,
           CASE WHEN CASE WHEN l.worker_gone THEN t.losses + 1 >= $3::int ELSE t.attempt > t.max_retries END
                THEN 4 ELSE 1 END AS status,
           CASE WHEN NOT l.worker_gone AND t.attempt <= t.max_retries THEN 1 ELSE 0 END AS attempts,
           CASE WHEN l.worker_gone THEN 1 ELSE 0 END AS losses, 0 AS postponements,
           NULL::text AS route, 0::float8 AS due_seconds, 0::float8 AS hold_seconds, NULL::text AS result,
           CASE WHEN NOT l.worker_gone THEN 'timeout' WHEN t.losses + 1 >= $3::int AND NOT t.cancel_requested
                THEN 'kills-worker' ELSE 'worker-lost' END AS reason,
           CASE WHEN l.worker_gone THEN 'WorkerLost' ELSE 'TimeoutError' END AS error_type,
           CASE WHEN l.worker_gone THEN 'its worker died' ELSE 'its worker did not end it in time' END
           AS error_message
    FROM lost l JOIN tasks t ON t.id = l.id
    WHERE t.status = 2 AND t.dispatch = l.dispatch AND t.worker_id = l.worker_id
    ORDER BY t.id LIMIT $1 FOR NO KEY UPDATE OF t SKIP LOCKED
)"""
    + ENDING
    + ENDED
)

_CLAIMED_THROUGH = """
SELECT max(claimed_through[1]), max(claimed_through[2]), max(claimed_through[3])
FROM workers WHERE dead_at IS NULL
"""

_UNCLAIMED = """
SELECT q.priority, coalesce(sum(w.unclaimed), 0)::int
FROM queues q LEFT JOIN workers w ON w.dead_at IS NULL AND q.name = ANY(w.queues) GROUP BY q.priority
"""

# OFFSET 0 keeps the question out of a join: without statistics that took 20 s over 100,000 outbox rows, and
# so did "status = 0", which brought the index of all due rows into it.
_RESEND = """
WITH lost AS (
    SELECT t.id, t.dispatch, t.priority, t.due_at FROM tasks t
    WHERE t.status = 1 AND t.priority = $1::smallint
    AND t.queued_at < least(now(), coalesce($2::timestamptz, now() - make_interval(secs => $4::float8)))
    AND NOT EXISTS (SELECT FROM outbox o WHERE o.task_id = t.id AND o.dispatch = t.dispatch
                    AND o.status <> 1 OFFSET 0)
    ORDER BY t.queued_at LIMIT $3::int
)
INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
SELECT l.id, l.dispatch, l.priority, q.name, greatest(now(), l.due_at)
FROM lost l JOIN queues q ON q.priority = l.priority RETURNING 1
"""

# In the order of the index, so that the oldest comes first and the count ends after `most` entries of it.
_BACKLOG = """
SELECT q.priority, d.rows, coalesce(extract(epoch FROM now() - d.oldest), 0)::float8, f.rows
FROM queues q CROSS JOIN LATERAL (
    SELECT count(*)::int AS rows, min(available_at) AS oldest FROM (
        SELECT o.available_at FROM outbox o
        WHERE o.status = 0 AND o.priority = q.priority AND o.available_at <= now()
        ORDER BY o.available_at LIMIT $1) due) d
CROSS JOIN (SELECT count(*)::int AS rows FROM (SELECT FROM outbox WHERE status = 1 LIMIT $1) failed) f
"""

# Bounded by the time inside a UUIDv7: without an index on finished_at, a round that finds nothing must not
# walk the whole table. Arrays, because a join may read all payloads to find 500.
_PRUNE_TASKS = """
WITH old AS MATERIALIZED (
    SELECT id FROM tasks
    WHERE id < (lpad(to_hex((extract(epoch FROM now() - make_interval(secs => $1::float8)) * 1000)::bigint),
                     12, '0') || repeat('0', 20))::uuid
    AND status >= 3 AND finished_at < now() - make_interval(secs => $1::float8)
    ORDER BY id LIMIT $2::int FOR UPDATE SKIP LOCKED
), rows AS (
    SELECT id FROM outbox WHERE task_id = ANY (ARRAY(SELECT id FROM old)) ORDER BY id FOR UPDATE SKIP LOCKED
), unsent AS (
    DELETE FROM outbox WHERE id = ANY (ARRAY(SELECT id FROM rows))
), bodies AS (
    DELETE FROM payloads WHERE task_id = ANY (ARRAY(SELECT id FROM old)) RETURNING tenant, task_id, tags
), labels AS (
    DELETE FROM task_tags WHERE ctid = ANY (ARRAY(
        SELECT e.ctid FROM bodies b CROSS JOIN unnest(b.tags) AS label CROSS JOIN LATERAL (
            SELECT ctid FROM task_tags WHERE tenant = b.tenant AND tag = label AND task_id = b.task_id
            OFFSET 0) e))
), answers AS (
    DELETE FROM results WHERE task_id = ANY (ARRAY(SELECT id FROM old))
), letters AS (
    DELETE FROM dead_letters WHERE task_id = ANY (ARRAY(SELECT id FROM old))
), entries AS (
    DELETE FROM audit WHERE task_id = ANY (ARRAY(SELECT id FROM old))
)
DELETE FROM tasks WHERE id = ANY (ARRAY(SELECT id FROM old)) RETURNING 1
"""

# Locked in one order before they are deleted: how many are asked for decides the plan, and two janitors with
# different plans deadlocked. By ctid, since a join may read all keys; a locked one stays put.
_PRUNE_KEYS = """
WITH workers AS (
    DELETE FROM workers WHERE dead_at < now() - interval '1 day'
)
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at < now() - make_interval(secs => $1::float8)
    ORDER BY created_at LIMIT $2::int FOR UPDATE SKIP LOCKED)) RETURNING 1
"""

# What nobody could read belongs to no task.
_PRUNE_UNDECODABLE = """
DELETE FROM dead_letters WHERE id = ANY (ARRAY(
    SELECT id FROM dead_letters
    WHERE task_id IS NULL AND created_at < now() - make_interval(secs => $1::float8)
    LIMIT $2::int FOR UPDATE SKIP LOCKED)) RETURNING 1
"""

_RESTART_VOLATILE = """
WITH unleased AS (
    UPDATE outbox SET leased_until = NULL WHERE leased_until IS NOT NULL
), buried AS (
    UPDATE workers SET dead_at = now() WHERE dead_at IS NULL
)
INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
SELECT t.id, t.dispatch, t.priority, q.name, greatest(now(), t.due_at)
FROM tasks t JOIN queues q ON q.priority = t.priority
WHERE t.status = 1 AND NOT EXISTS (
    SELECT FROM outbox o WHERE o.task_id = t.id AND o.dispatch = t.dispatch AND o.status = 0) RETURNING 1
"""


class PostgresUpkeep:
    """`pipeline.ports.Upkeep` on PostgreSQL."""

    def __init__(self, database: Database, signals: PostgresSignals) -> None:
        self._database = database
        self._signals = signals

    async def rescue(self, most: int, lease_seconds: float, *, hung: bool = True) -> list[Rescued]:
        """Dispatch again the runs of dead or missing workers, and hung ones where these are asked for."""
        moved = await self._database.fetch(_RESCUE, [most, lease_seconds, MOST_LOSSES, hung])
        rescued = [Rescued(reference, status) for reference, status in ended(moved).items()]
        if rescued:
            self._signals.notify(OUTBOX)
        if any(run.status.terminal for run in rescued):
            self._signals.notify(DONE)
        return rescued

    async def claimed_through(self) -> dict[Priority, datetime]:
        """Tell, per priority, the newest `queued_at` that live workers have claimed."""
        [newest] = await self._database.fetch(_CLAIMED_THROUGH)
        return {priority: at for priority, at in zip(Priority, newest, strict=True) if at is not None}

    async def unclaimed(self) -> dict[Priority, int]:
        """Tell, per priority, how many references live workers hold that are not yet claimed."""
        return {Priority(priority): count for priority, count in await self._database.fetch(_UNCLAIMED)}

    async def resend(
        self, priority: Priority, queued_before: datetime | None, most: int, min_age_seconds: float = 0.0
    ) -> int:
        """Send again, with their own dispatch, PENDING tasks that no outbox row stands for."""
        sent = await self._database.fetch(_RESEND, [int(priority), queued_before, most, min_age_seconds])
        if sent:
            self._signals.notify(OUTBOX)
        return len(sent)

    async def backlog(self, most: int) -> Backlog:
        """Count due and FAILED outbox rows, each up to `most`, and tell how old the oldest due ones are."""
        found = await self._database.fetch(_BACKLOG, [most])
        due = {Priority(priority): Due(rows, oldest_seconds) for priority, rows, oldest_seconds, _ in found}
        return Backlog(due, found[0][3] if found else 0)

    async def prune(self, retention_seconds: float, idempotency_ttl_seconds: float, most: int) -> int:
        """Remove what is over; each kind of row at most `most` times."""
        removed = await self._database.fetch(_PRUNE_KEYS, [idempotency_ttl_seconds, most])
        if retention_seconds:
            for statement in (_PRUNE_UNDECODABLE, _PRUNE_TASKS):
                removed += await self._database.fetch(statement, [retention_seconds, most])
        return len(removed)

    async def restart_volatile(self) -> int:
        """Send all waiting tasks again and let every run be rescued: the broker forgot all it held."""
        sent = await self._database.fetch(_RESTART_VOLATILE)
        return len(sent) + len(await self.rescue(most=1_000_000, lease_seconds=0.0))
