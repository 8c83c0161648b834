"""What there is when all is over."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from tests.chaos.harness.history import Final, FinalTask

if TYPE_CHECKING:
    from storage.database import Database

_TASKS = """
SELECT t.id, p.name, t.kind, t.status, t.dispatch, t.attempt, t.losses, t.replay, t.max_retries,
       t.cancel_requested, t.worker_id, t.reason, coalesce(jsonb_array_length(t.errors), 0),
       (convert_from(r.body, 'UTF8')::jsonb - 'filling')::text
FROM tasks t LEFT JOIN payloads p ON p.task_id = t.id LEFT JOIN results r ON r.task_id = t.id
WHERE t.id > $1::uuid ORDER BY t.id LIMIT 20000
"""
_OUTBOX = "SELECT id, task_id, dispatch, route, status FROM outbox ORDER BY id"
_DEAD_LETTERS = "SELECT task_id, dispatch, reason FROM dead_letters ORDER BY id"
_KEYS = "SELECT key, task_ids FROM idempotency_keys"
_ALONE = "SELECT count(*)::int FROM payloads p WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.id = p.task_id)"
_IDLE = """
SELECT count(*)::int FROM pg_stat_activity
WHERE datname = current_database() AND state LIKE 'idle in transaction%'
"""


async def read_final(database: Database, queues: dict[str, tuple[int, int]]) -> Final:
    """Read the database; the programs have ended, and no one writes any more."""
    tasks: list[FinalTask] = []
    last = "00000000-0000-0000-0000-000000000000"
    while page := await database.fetch(_TASKS, [UUID(last)]):
        tasks += msgspec.convert(page, list[FinalTask])
        last = tasks[-1].id
    [(alone,)] = await database.fetch(_ALONE)
    [(idle,)] = await database.fetch(_IDLE)
    return Final(
        tasks=tasks,
        outbox=await database.fetch(_OUTBOX),
        dead_letters=await database.fetch(_DEAD_LETTERS),
        keys=await database.fetch(_KEYS),
        payloads_without_task=alone,
        idle_in_transaction=idle,
        queues=queues,
    )
