"""The worker's hand: from claim to verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.channels import DONE, OUTBOX
from storage.model import (
    Cancelled,
    Dead,
    Done,
    Interrupted,
    Priority,
    Recorded,
    Reference,
    Retry,
    Run,
    Status,
)
from storage.transitions import ENDED, ENDING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from storage.database import Database, Row
    from storage.model import Failure, Verdict
    from storage.signals import PostgresSignals

# A kind this worker does not know waits for one that does, as in a rolling deploy.
UNKNOWN_KIND_SECONDS = 30.0
# While a queue is paused no relay sends its rows: they wait in the outbox, due as soon as it is resumed.
PAUSED_SECONDS = 1.0
# Who is declared dead may be the only worker: it is not sent the same without end until a heartbeat tells it.
DECLARED_DEAD_SECONDS = 1.0

# What no relay has marked yet was queued after it was made: good enough to tell how far a queue was claimed.
# A task waits from when it is due, else from its creation; when a replay was asked is not kept, and stood in
# for by when it was queued.
# Updated in order of id and never SKIP LOCKED: a row that another transaction holds for a moment would be
# read as "refused" and its reference forgotten. Who is declared dead takes nothing, since it would be lost at
# once; one look per statement. Who has not reported yet may take. What is not due yet takes nobody, whatever
# brought its message: a copy sent twice, the clock of the broker. A claim is repeated only while its answer
# is not known, so its handler has not started, and its time counts from the last one.
# What was not taken goes back if it waited as the statement began; where it has moved on meanwhile, that only
# doubles a message. The sums keep the planner from the indexes by status.
_CLAIM = """
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest($1::text[]::uuid[], $2::int[]) WITH ORDINALITY AS w(id, dispatch, place) ORDER BY id
), rules AS MATERIALIZED (
    SELECT ARRAY(SELECT paused FROM queues ORDER BY priority) AS paused,
           EXISTS (SELECT FROM workers WHERE id = $3 AND dead_at IS NOT NULL) AS dead
), taken AS (
    UPDATE tasks t SET status = 2, worker_id = $3, started_at = clock_timestamp()
    FROM wanted w CROSS JOIN rules r
    WHERE t.id = w.id AND t.dispatch = w.dispatch
    AND CASE WHEN t.status + 0 < 2
             THEN NOT (r.dead OR r.paused[t.priority]) AND t.kind = ANY ($4)
                  AND coalesce(t.due_at <= now(), true)
             ELSE t.status + 0 = 2 AND t.worker_id = $3 END
    RETURNING t.id, w.place, t.kind, t.kind_version, t.priority, t.attempt, t.max_retries,
              t.timeout_seconds, t.losses, t.postponements, t.replay, t.tenant, t.trace_context,
              least(coalesce(t.queued_at, greatest(t.due_at, t.created_at)), now()),
              extract(epoch FROM t.started_at - CASE
                  WHEN t.due_at IS NULL AND t.replay > 0 THEN coalesce(t.queued_at, t.started_at)
                  ELSE greatest(t.due_at, t.created_at) END)::float8
), left_over AS (
    SELECT t.id, t.dispatch, t.priority, q.name,
           CASE WHEN q.paused THEN $5::float8
                WHEN t.due_at > now() THEN extract(epoch FROM t.due_at - now())::float8
                WHEN t.kind <> ALL ($4::text[]) THEN $6::float8
                WHEN (SELECT dead FROM rules) THEN $7::float8 END AS later_seconds
    FROM wanted w JOIN tasks t ON t.id = w.id AND t.dispatch = w.dispatch
    JOIN queues q ON q.priority = t.priority
    WHERE w.place NOT IN (SELECT place FROM taken) AND t.status + 0 < 2
), returned AS (
    INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
    SELECT id, dispatch, priority, name, now() + make_interval(secs => later_seconds)
    FROM left_over WHERE later_seconds IS NOT NULL
)
SELECT p.body, t.* FROM taken t JOIN payloads p ON p.task_id = t.id
"""

_MOVED = "SELECT coalesce(array_agg(place), '{}'), coalesce(array_agg(status), '{}') FROM moved"

_RECORD = (
    """
WITH given AS (
    SELECT * FROM unnest($1::text[]::uuid[], $2::int[], $3::int[], $4::int[], $5::int[], $6::text[],
                         $7::float8[], $8::float8[], $9::text[], $10::text[], $11::text[], $12::text[])
         WITH ORDINALITY
    AS g(id, dispatch, status, attempts, postponements, route, due_seconds, hold_seconds,
         result, reason, error_type, error_message, place)
), ending AS (
    SELECT *, true AS running, 0 AS losses FROM given ORDER BY id
)"""
    + ENDING
    + _MOVED
)

# Most verdicts are successes: a quarter of the columns, for half the time of the driver.
_COMPLETE = (
    """
WITH ending AS (
    SELECT *, true AS running, 3 AS status, 0 AS attempts, 0 AS losses, 0 AS postponements,
           NULL::text AS route, 0::float8 AS due_seconds, 0::float8 AS hold_seconds, NULL::text AS reason,
           NULL::text AS error_type, NULL::text AS error_message
    FROM unnest($1::text[]::uuid[], $2::int[], $3::text[]) WITH ORDINALITY AS g(id, dispatch, result, place)
    ORDER BY id
)"""
    + ENDING
    + _MOVED
)

# What a verdict that moved nothing had moved before, when its reply was lost: the task is where it led,
# and of that run the task shows what the verdict says, and nothing that a rescue said.
_RECORDED_BEFORE = """
SELECT g.place, CASE WHEN t.dispatch = g.dispatch THEN t.status ELSE 1 END
FROM unnest($1::text[]::uuid[], $2::int[], $3::int[], $4::int[], $5::text[], $6::text[], $7::text[],
            $8::text[], $9::int[])
    AS g(id, dispatch, replay, status, result, reason, error_type, error_message, place)
JOIN tasks t ON t.id = g.id AND t.replay = g.replay
WHERE t.started_at IS NOT NULL
AND CASE WHEN t.dispatch > g.dispatch THEN g.status = 1
         WHEN t.dispatch < g.dispatch THEN false
         WHEN t.status = 5 AND t.cancel_requested THEN g.status <> 3
         ELSE t.status = g.status AND t.status >= 3 END
AND CASE WHEN g.error_type IS NULL
         THEN NOT coalesce(t.errors, '[]') @> jsonb_build_array(jsonb_build_object('dispatch', g.dispatch))
         ELSE t.errors @> jsonb_build_array(jsonb_build_object('dispatch', g.dispatch, 'reason', g.reason,
                                            'type', g.error_type, 'message', g.error_message)) END
AND (g.result IS NULL OR EXISTS (
    SELECT FROM results r WHERE r.task_id = t.id AND r.body = convert_to(g.result, 'UTF8')))
"""

_RELEASE = (
    """
WITH given AS (
    SELECT * FROM unnest($1::text[]::uuid[], $2::int[]) AS g(id, dispatch)
), ending AS (
    SELECT t.id, t.dispatch, true AS running, 0 AS place, 1 AS status, 0 AS attempts, 0 AS losses,
           0 AS postponements, NULL::text AS route,
           0::float8 AS due_seconds, 0::float8 AS hold_seconds, NULL::text AS result, NULL::text AS reason,
           NULL::text AS error_type, NULL::text AS error_message
    FROM given g JOIN tasks t ON t.id = g.id AND t.dispatch = g.dispatch
    WHERE t.status = 2 AND t.worker_id = $3
    ORDER BY t.id FOR NO KEY UPDATE OF t
)"""
    + ENDING
    + ENDED
)

_HAND_BACK = """
INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
SELECT t.id, t.dispatch, t.priority, q.name, now() + make_interval(secs => $3::float8)
FROM unnest($1::text[]::uuid[], $2::int[]) AS g(id, dispatch)
JOIN tasks t ON t.id = g.id AND t.dispatch = g.dispatch JOIN queues q ON q.priority = t.priority
WHERE t.status IN (0, 1) RETURNING 1
"""


_RECORDED = {status: Recorded(status) for status in (None, *Status)}


class PostgresRuns:
    """`pipeline.ports.Runs` on PostgreSQL."""

    def __init__(self, database: Database, signals: PostgresSignals) -> None:
        self._database = database
        self._signals = signals

    async def claim(
        self, references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str]
    ) -> list[Run]:
        """Take what waits under its dispatch, and what this worker already holds from a lost reply."""
        delays_seconds = (PAUSED_SECONDS, UNKNOWN_KIND_SECONDS, DECLARED_DEAD_SECONDS)
        rows = await self._database.fetch(
            _CLAIM, [*_columns(references), worker_id, list(kinds), *delays_seconds]
        )
        return [_run(row, references) for row in rows]

    async def record(self, verdicts: Sequence[Verdict]) -> list[Recorded]:
        """Write verdicts with everything that follows from them; a stale dispatch changes nothing."""
        statuses: dict[int, int] = {}
        for places, led_to in await self._move(verdicts):
            statuses |= zip(places, led_to, strict=True)
        self._wake(set(statuses.values()))
        places = range(1, len(verdicts) + 1)
        if unmoved := [place for place in places if place not in statuses]:
            # By another statement: the first may have ended while this one waited for its rows.
            traces = [(*_trace(verdicts[place - 1]), place) for place in unmoved]
            statuses |= dict(await self._database.fetch(_RECORDED_BEFORE, _transposed(traces)))
        return [_RECORDED[statuses.get(place)] for place in places]

    async def _move(self, verdicts: Sequence[Verdict]) -> list[Row]:
        results = [verdict.result for verdict in verdicts if isinstance(verdict, Done)]
        if len(results) < len(verdicts):
            return await self._database.fetch(_RECORD, _transposed(map(_ending, verdicts)))
        references = [verdict.run.reference for verdict in verdicts]
        return await self._database.fetch(_COMPLETE, [*_columns(references), results])

    async def hand_back(self, references: Sequence[Reference], delay_seconds: float) -> None:
        """Give references that still wait back through the outbox, same dispatch."""
        if (
            await self._database.fetch(_HAND_BACK, [*_columns(references), delay_seconds])
            and not delay_seconds
        ):
            self._signals.notify(OUTBOX)

    async def release(self, references: Sequence[Reference], worker_id: UUID) -> None:
        """Dispatch again what the database counts as this worker's and the worker does not hold."""
        moved = await self._database.fetch(_RELEASE, [*_columns(references), worker_id])
        self._wake({status for _, _, status in moved})

    def _wake(self, statuses: set[int]) -> None:
        if statuses & {Status.PENDING, Status.FAILED}:
            self._signals.notify(OUTBOX)
        if statuses - {Status.PENDING}:
            self._signals.notify(DONE)


def _columns(references: Sequence[Reference]) -> list[list[object]]:
    """Lay references out as parameters; ids as text, for which the driver takes a third of the time."""
    return [
        [reference.task_id.hex for reference in references],
        [reference.dispatch for reference in references],
    ]


def _transposed(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _run(row: Row, references: Sequence[Reference]) -> Run:
    body, _, place, kind, kind_version, priority, attempt, max_retries, timeout_seconds, *rest = row
    losses, postponements, replay, tenant, trace_context, queued_at, waited_seconds = rest
    return Run(
        reference=references[place - 1],
        kind=kind,
        kind_version=kind_version,
        priority=Priority(priority),
        attempt=attempt,
        max_retries=max_retries,
        timeout_seconds=timeout_seconds,
        losses=losses,
        postponements=postponements,
        replay=replay,
        tenant=tenant,
        trace_context=trace_context,
        queued_at=queued_at,
        waited_seconds=waited_seconds,
        payload=body,
    )


def _ending(verdict: Verdict) -> tuple[object, ...]:
    """Lay a verdict out as a row of _RECORD: where it moves the task, what it adds, what it leaves."""
    status, attempts, postponements = Status.PENDING, 0, 0
    route: str | None = None
    due_seconds = hold_seconds = 0.0
    result: str | None = None
    failure: Failure | None = None
    match verdict:
        case Done():
            status, result = Status.COMPLETED, verdict.result
        case Retry():
            failure, route, due_seconds = verdict.failure, verdict.route, verdict.delay_seconds
            hold_seconds = due_seconds if verdict.waits_in_outbox else 0.0
            attempts, postponements = (1, 0) if verdict.burns_attempt else (0, 1)
        case Dead():
            status, failure = Status.FAILED, verdict.failure
        case Cancelled():
            status = Status.CANCELLED
        case Interrupted():
            pass
    told = (str(failure.reason), failure.type, failure.message) if failure else (None, None, None)
    moves = (int(status), attempts, postponements, route, due_seconds, hold_seconds)
    task_id, dispatch = verdict.run.reference
    return (task_id.hex, dispatch, *moves, result, *told)


def _trace(verdict: Verdict) -> tuple[object, ...]:
    """Lay a verdict out as a row of _RECORDED_BEFORE: what it has left behind, if it was recorded."""
    task_id, dispatch, status, _, _, _, _, _, *left = _ending(verdict)
    return (task_id, dispatch, verdict.run.replay, status, *left)
