"""Evidence of what ended badly: FAILED tasks, and messages that nobody can read."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from storage.channels import OUTBOX
from storage.errors_column import decode_errors
from storage.model import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.database import Database, Row
    from storage.model import Caller, Reference
    from storage.signals import PostgresSignals

MOST_BODY_BYTES = 64 << 10

# The database decides what a reference in the DLQ means, never the headers of the message.
_BURY = """
WITH found AS (
    SELECT t.* FROM unnest($1::uuid[], $2::int[]) AS g(id, dispatch)
    JOIN tasks t ON t.id = g.id AND t.dispatch = g.dispatch
), kept AS (
    INSERT INTO dead_letters (tenant, task_id, dispatch, kind, attempt, losses, replay, reason, errors)
    SELECT tenant, id, dispatch, kind, attempt, losses, replay, reason, errors FROM found
    WHERE status = 4 ORDER BY id ON CONFLICT (task_id, dispatch) DO NOTHING
)
INSERT INTO outbox (task_id, dispatch, priority, route)
SELECT f.id, f.dispatch, f.priority, q.name FROM found f JOIN queues q ON q.priority = f.priority
WHERE f.status IN (0, 1) ORDER BY f.id RETURNING 1
"""

_BURY_UNDECODABLE = """
INSERT INTO dead_letters (reason, body, headers) VALUES ($1, decode($2, 'base64'), $3) RETURNING 1
"""

_COLUMNS = "id, reason, created_at, task_id, dispatch, kind, attempt, losses, replay, errors::text"

_FIND = f"""
SELECT {_COLUMNS} FROM dead_letters
WHERE tenant = $1 AND ($2::uuid IS NULL OR task_id = $2) AND ($3::text IS NULL OR kind = $3)
AND ($4::bigint IS NULL OR id < $4) ORDER BY id DESC LIMIT $5::int
"""

_GET = f"SELECT {_COLUMNS}, body, headers FROM dead_letters WHERE id = $1::bigint AND tenant = $2"


class PostgresDeadLetters:
    """`pipeline.ports.DeadLetters` on PostgreSQL."""

    def __init__(self, database: Database, signals: PostgresSignals) -> None:
        self._database = database
        self._signals = signals

    async def bury(self, references: Sequence[Reference]) -> int:
        """Keep FAILED ones, send waiting ones again, forget the rest; how many were sent again."""
        columns = [[reference.task_id for reference in references], [r.dispatch for r in references]]
        sent = await self._database.fetch(_BURY, columns)
        if sent:
            self._signals.notify(OUTBOX)
        return len(sent)

    async def bury_undecodable(self, body: bytes, headers: Mapping[str, object], error: str) -> None:
        """Keep a message nobody can read: the first 64 KiB and its headers."""
        encoded = base64.b64encode(body[:MOST_BODY_BYTES]).decode()
        text = msgspec.json.encode(headers, enc_hook=repr).decode()
        await self._database.fetch(_BURY_UNDECODABLE, [f"undecodable: {error}"[:500], encoded, text])

    async def find(
        self, caller: Caller, *, task_id: UUID | None, kind: str | None, before: int | None, limit: int
    ) -> list[DeadLetter]:
        """List dead letters, newest first."""
        rows = await self._database.fetch(_FIND, [caller.tenant, task_id, kind, before, limit])
        return [_dead_letter(row) for row in rows]

    async def get(self, caller: Caller, dead_letter_id: int) -> DeadLetter | None:
        """Read one, with the raw bytes of an undecodable message."""
        rows = await self._database.fetch(_GET, [dead_letter_id, caller.tenant])
        return _dead_letter(rows[0][:-2], body=rows[0][-2], headers=rows[0][-1]) if rows else None


def _dead_letter(row: Row, body: bytes | None = None, headers: str | None = None) -> DeadLetter:
    row_id, reason, created_at, task_id, dispatch, kind, attempt, losses, replay, errors = row
    return DeadLetter(
        id=row_id,
        reason=reason,
        created_at=created_at,
        task_id=UUID(task_id) if task_id else None,
        dispatch=dispatch,
        kind=kind,
        attempt=attempt,
        losses=losses,
        replay=replay,
        errors=decode_errors(errors),
        body=body,
        headers=headers,
    )
