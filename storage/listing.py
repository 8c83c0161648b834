"""The statement behind a list of tasks: it walks one index, newest first, and no further than it may."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from storage.model import Status

if TYPE_CHECKING:
    from storage.model import Caller, TaskFilter

LATE_SECONDS = 60
"""How long after its id was made a task may be written, for a list by time to find it."""

# As short as clocks allow: a list walks all ids in it before it comes to what was asked for.
EARLY_SECONDS = 5
"""How far its id may be ahead of the database's clock, likewise."""

TASK_COLUMNS = """t.id, t.kind, t.kind_version, p.name, p.description, p.tags, t.priority, t.status,
    t.dispatch, t.attempt, t.losses, t.replay, t.max_retries, t.timeout_seconds, t.cancel_requested,
    t.created_at, t.due_at, t.started_at, t.finished_at, t.reason, t.errors::text, t.tenant"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MILLISECOND = (1 << 48) - 1
_LOWEST, _HIGHEST = UUID(int=0), UUID(int=(1 << 128) - 1)

_CONDITIONS = {
    "tenant": "t.tenant = {tenant}",
    "status": "t.status = {status}::smallint",
    "priority": "t.priority = {priority}::smallint",
    "kind": "t.kind = {kind}",
    "created_from": "t.created_at >= {created_from}::timestamptz",
    "created_to": "t.created_at < {created_to}::timestamptz",
}

# The walks. `place` counts the entries, and the last that may be looked at is shown whatever it is: there the
# next page goes on. Order and upper bound are rows of label and id, an order that one index alone has. With
# "kind = " and the order of ids the planner takes the primary key where it holds the kind for common, and
# looks for a rare one among all tasks. A row as the lower bound ends no walk before PostgreSQL 18: what is
# below `first` is shown instead, and fills the page.
_ALL = """(
    SELECT *, id AS walked, row_number() OVER (ORDER BY id DESC) AS place
    FROM tasks WHERE id >= {first}::uuid AND id < {end}::uuid
    ORDER BY id DESC LIMIT {scan_rows}
) t"""
# The constant lets the planner use the partial index.
_STATUS = """(
    SELECT *, status AS label, id AS walked, row_number() OVER (ORDER BY status DESC, id DESC) AS place
    FROM tasks WHERE tenant = {tenant} AND status <> 3
    AND status >= {status}::smallint AND (status, id) < ({status}::smallint, {end}::uuid)
    ORDER BY status DESC, id DESC LIMIT {scan_rows}
) t"""
# OFFSET 0 makes each task a look-up of its own, which ends with the page; a join may read all tasks.
_KIND = """(
    SELECT kind AS label, task_id AS walked, row_number() OVER (ORDER BY kind DESC, task_id DESC) AS place
    FROM payloads WHERE tenant = {tenant} AND kind >= {kind} AND (kind, task_id) < ({kind}, {end}::uuid)
    ORDER BY kind DESC, task_id DESC LIMIT {scan_rows}
) w CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = w.walked OFFSET 0) t"""
_TAG = """(
    SELECT tag AS label, task_id AS walked, row_number() OVER (ORDER BY tag DESC, task_id DESC) AS place
    FROM task_tags WHERE tenant = {tenant} AND tag >= {tag} AND (tag, task_id) < ({tag}, {end}::uuid)
    ORDER BY tag DESC, task_id DESC LIMIT {scan_rows}
) w CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = w.walked OFFSET 0) t"""


def listing(caller: Caller, which: TaskFilter) -> tuple[str, list[object]]:
    """Write the statement and its parameters.

    It gives up to one row more than the page holds. Behind the columns of the task stands whether it is one
    that was asked for, and whether the next page goes on behind it, the last that may be looked at.
    """
    first, end = _bounds(which)
    given: dict[str, object] = {"tenant": caller.tenant, "first": first, "end": end}
    for name in ("tag", "status", "priority", "kind", "created_from", "created_to"):
        if (value := getattr(which, name)) is not None:
            given[name] = value
    walk, newest = _walk(which)
    shown = " AND ".join(condition for name, condition in _CONDITIONS.items() if name in given)
    sql = f"""
SELECT {TASK_COLUMNS}, {shown}, place = {{scan_rows}} AND walked >= {{first}}::uuid FROM {walk}
CROSS JOIN LATERAL (SELECT name, description, tags FROM payloads WHERE task_id = t.id OFFSET 0) p
WHERE {shown} OR place = {{scan_rows}} OR walked < {{first}}::uuid
ORDER BY {newest} LIMIT {which.limit + 1:d}
"""
    numbers = {name: f"${number}" for number, name in enumerate(given, 1)}
    return sql.format(**numbers, scan_rows=which.scan_rows), [*given.values()]


def _walk(which: TaskFilter) -> tuple[str, str]:
    """Choose the index that knows most: a tag may be rare, and all but COMPLETED is."""
    labelled = "label DESC, walked DESC"
    if which.tag is not None:
        return _TAG, labelled
    if which.status not in (None, Status.COMPLETED):
        return _STATUS, labelled
    if which.kind is not None:
        return _KIND, labelled
    return _ALL, "walked DESC"


def _bounds(which: TaskFilter) -> tuple[UUID, UUID]:
    """Tell the lowest id that the list may show, and the one that it stays below."""
    first = _id_at(which.created_from, -LATE_SECONDS) if which.created_from else _LOWEST
    end = _id_at(which.created_to, EARLY_SECONDS) if which.created_to else _HIGHEST
    return first, min(end, which.before or end)


def _id_at(moment: datetime, later_seconds: int) -> UUID:
    """Make the first UUIDv7 of a millisecond."""
    milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1) + later_seconds * 1000
    return UUID(int=min(max(milliseconds, 0), _LAST_MILLISECOND) << 80)
