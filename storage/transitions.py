"""How a run ends and how a task begins anew: the SQL that several statements share.

ENDING goes behind a CTE `ending` that says of each task, in order of id:

    id, dispatch          the task, and the hand-over that ends
    running               whether it must still run, or still wait: the row as it is by then decides
    place                 its place in what the caller gave
    status                the status it moves to: 1, 3, 4 or 5
    attempts, losses,
    postponements         what the end adds to each count
    route, due_seconds,   of a task that is dispatched again: by which queue (null: its work queue), when
    hold_seconds          it is due, and how long the outbox row holds it back
    result, reason,
    error_type,
    error_message         null where there is none

A cancellation that was asked overrides every end but COMPLETED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from storage.model import Reference, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.database import Row

# The update itself locks the rows, in the order of `ending`; locking them first took a third of the time.
# The sum keeps the planner from the indexes by status, over which it read all that runs for each row.
ENDING = """
, moved AS (
    UPDATE tasks t SET
        status = CASE WHEN t.cancel_requested AND e.status <> 3 THEN 5 ELSE e.status END,
        dispatch = t.dispatch + CASE WHEN e.status = 1 AND NOT t.cancel_requested THEN 1 ELSE 0 END,
        attempt = t.attempt + e.attempts,
        losses = t.losses + e.losses,
        postponements = t.postponements + e.postponements,
        worker_id = NULL,
        queued_at = NULL,
        due_at = CASE WHEN e.status = 1 THEN now() + make_interval(secs => e.due_seconds) ELSE t.due_at END,
        finished_at = CASE WHEN e.status = 1 AND NOT t.cancel_requested THEN NULL ELSE clock_timestamp() END,
        reason = CASE WHEN e.status = 4 AND NOT t.cancel_requested THEN e.reason END,
        errors = CASE WHEN e.error_type IS NULL THEN t.errors
                 ELSE (CASE WHEN jsonb_array_length(t.errors) >= 20 THEN t.errors - 0
                       ELSE coalesce(t.errors, '[]') END) || jsonb_build_object(
                     'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                     'dispatch', t.dispatch, 'attempt', t.attempt,
                     'type', e.error_type, 'message', e.error_message, 'reason', e.reason) END
    FROM ending e WHERE t.id = e.id AND t.dispatch = e.dispatch AND (t.status + 0 = 2) = e.running
    RETURNING t.id, t.status, t.dispatch, t.tenant, t.kind, t.priority, t.attempt, t.losses, t.replay,
              t.reason, t.errors, e.route, e.hold_seconds, e.result, e.place
), stored AS (
    INSERT INTO results (task_id, body)
    SELECT id, convert_to(result, 'UTF8') FROM moved WHERE status = 3 ON CONFLICT (task_id) DO NOTHING
), sent AS (
    INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
    SELECT m.id, m.dispatch, m.priority,
           CASE WHEN m.status = 4 THEN 'tasks.dlq' ELSE coalesce(m.route, q.name) END,
           now() + make_interval(secs => CASE WHEN m.status = 4 THEN 0 ELSE m.hold_seconds END)
    FROM moved m JOIN queues q ON q.priority = m.priority WHERE m.status IN (1, 4)
), buried AS (
    INSERT INTO dead_letters (tenant, task_id, dispatch, kind, attempt, losses, replay, reason, errors)
    SELECT tenant, id, dispatch, kind, attempt, losses, replay, reason, errors FROM moved WHERE status = 4
    ON CONFLICT (task_id, dispatch) DO NOTHING
)
"""

REPLAYED = """status = 0, dispatch = t.dispatch + 1, replay = t.replay + 1, attempt = 1, losses = 0,
        postponements = 0, errors = NULL, reason = NULL, cancel_requested = false, due_at = NULL,
        started_at = NULL, finished_at = NULL, queued_at = NULL"""
"""What an UPDATE of `tasks t` sets to begin a FAILED or CANCELLED task anew, under the next dispatch."""

ENDED = "SELECT id, dispatch - CASE WHEN status = 1 THEN 1 ELSE 0 END, status FROM moved"
"""Goes behind ENDING: each task that moved, the dispatch that ended, and the status it led to."""


def ended(rows: Iterable[Row]) -> dict[Reference, Status]:
    """Read the rows of ENDED: what became of each run."""
    return {Reference(UUID(task_id), dispatch): Status(status) for task_id, dispatch, status in rows}
