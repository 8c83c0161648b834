"""Triggers that write down every change of tasks and outbox in the transaction that makes it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tests.chaos.harness.events import Clock
from tests.chaos.harness.history import OutboxChange, TaskChange, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.database import Database, Row
    from tests.chaos.harness.events import AnyEvent

# Logged tables in a schema of their own: an immediate stop must lose a change with its line, or neither.
_TRIGGERS = (
    "CREATE SCHEMA chaos",
    """
    CREATE TABLE chaos.task_changes (
        number bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
        task uuid, old_status smallint, status smallint, old_dispatch integer, dispatch integer,
        attempt integer, losses integer, postponements integer, replay integer, worker uuid,
        cancel_requested boolean, reason text, due_at timestamptz)
    """,
    """
    CREATE TABLE chaos.outbox_changes (
        number bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(),
        operation text, id bigint, task uuid, dispatch integer, route text, status smallint,
        attempts integer, due_at timestamptz)
    """,
    """
    CREATE FUNCTION chaos.task_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos.task_changes (task, old_status, status, old_dispatch, dispatch, attempt, losses,
            postponements, replay, worker, cancel_requested, reason, due_at)
        VALUES (NEW.id, OLD.status, NEW.status, OLD.dispatch, NEW.dispatch, NEW.attempt, NEW.losses,
            NEW.postponements, NEW.replay, NEW.worker_id, NEW.cancel_requested, NEW.reason, NEW.due_at);
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION chaos.outbox_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        changed outbox := coalesce(NEW, OLD);
    BEGIN
        INSERT INTO chaos.outbox_changes (operation, id, task, dispatch, route, status, attempts, due_at)
        VALUES (TG_OP, changed.id, changed.task_id, changed.dispatch, changed.route, changed.status,
            changed.attempts, changed.available_at);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER chaos AFTER INSERT OR UPDATE ON tasks
    FOR EACH ROW EXECUTE FUNCTION chaos.task_changed()
    """,
    """
    CREATE TRIGGER chaos AFTER INSERT OR UPDATE OF status, attempts OR DELETE ON outbox
    FOR EACH ROW EXECUTE FUNCTION chaos.outbox_changed()
    """,
)

_TASK_CHANGES = """
SELECT number, extract(epoch FROM at)::float8 - $3::float8, task, old_status, status, old_dispatch, dispatch,
       attempt, losses, postponements, replay, worker, cancel_requested, reason,
       extract(epoch FROM due_at - at)::float8
FROM chaos.task_changes WHERE number > $1 ORDER BY number LIMIT $2
"""

_OUTBOX_CHANGES = """
SELECT number, extract(epoch FROM at)::float8 - $3::float8, operation, id, task, dispatch, route, status,
       attempts, extract(epoch FROM due_at - at)::float8
FROM chaos.outbox_changes WHERE number > $1 ORDER BY number LIMIT $2
"""

PAGE_ROWS = 20_000


async def watch(database: Database) -> None:
    """Write down from now on what happens to tasks and outbox."""
    for statement in _TRIGGERS:
        await database.fetch(statement)


def clock(by: str) -> Clock:
    """Compare the database's clock, which is this machine's wall clock, with that of all events.

    The database is not asked: on a busy machine nobody knows how late its answer is. Of several readings
    the one counts within which the least time went by.
    """
    readings = [(now(), time.time(), now()) for _ in range(5)]
    before, wall, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return Clock(at=(before + after) / 2, by=by, database_seconds=wall)


def ahead_seconds(events: Sequence[AnyEvent]) -> float:
    """Tell what to subtract from the database's time; the median of what was asked during the run."""
    differences = sorted(event.database_seconds - event.at for event in events if isinstance(event, Clock))
    return differences[len(differences) // 2]


async def task_changes(database: Database, ahead: float) -> list[TaskChange]:
    """Read all changes of tasks."""
    return msgspec.convert(await _pages(database, _TASK_CHANGES, ahead), list[TaskChange])


async def outbox_changes(database: Database, ahead: float) -> list[OutboxChange]:
    """Read all changes of the outbox."""
    return msgspec.convert(await _pages(database, _OUTBOX_CHANGES, ahead), list[OutboxChange])


async def _pages(database: Database, sql: str, ahead: float) -> list[Row]:
    rows: list[Row] = []
    while page := await database.fetch(sql, [rows[-1][0] if rows else 0, PAGE_ROWS, ahead]):
        rows += page
    return rows
