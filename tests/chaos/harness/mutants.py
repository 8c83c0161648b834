"""Programs with one mistake each, which the checker must find and call by its name.

A mutant replaces a port, a stage or an SQL text when its process starts; the mistake stands above the pen of
`recording`, so the history tells what the servers were really asked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pipeline import roles
from pipeline.broker import Publication
from pipeline.flow import Parcel
from pipeline.stages import Claim
from storage import runs, tasks, upkeep
from storage.model import Accepted, Rescued
from storage.transitions import ended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pipeline.broker import Message
    from pipeline.ports import Submissions
    from pipeline.stages.claim import Claimed
    from pipeline.stages.consume import Wave
    from storage.ledger import PostgresLedger
    from storage.model import KeyReused, OutboxRow, Submission

NAP_SECONDS = 6.0
"""Longer than a frozen worker of the scenarios stays so after it was declared dead."""


def install(name: str) -> None:
    """Put a mutant into this process."""
    MUTANTS[name]()


class _Over:
    """A port that does as the one below it, but for what a mutant does otherwise."""

    def __init__(self, below: Any) -> None:
        self._below = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


def mark_before_confirm() -> None:
    """Let the relay delete rows before it has published them."""

    class Hasty(_Over):
        async def poll(self, most: int, lease_seconds: float) -> list[OutboxRow]:
            rows: list[OutboxRow] = await self._below.poll(most, lease_seconds)
            if rows:
                await self._below.settle([(row.id, 0.0) for row in rows])
            return rows

        async def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
            pass

    _over_ledger("outbox", Hasty)


def returns_not_raised() -> None:
    """Take a returned message for a confirmed one, as drivers do by default."""

    def deaf(
        publish: Callable[[Sequence[Message]], Awaitable[list[Publication]]],
    ) -> Callable[[Sequence[Message]], Awaitable[list[Publication]]]:
        async def published(messages: Sequence[Message]) -> list[Publication]:
            said = await publish(messages)
            return [Publication.CONFIRMED if each is Publication.RETURNED else each for each in said]

        return published

    made = _made("RabbitBroker")

    def make(*arguments: object) -> object:
        broker = made(*arguments)
        broker.publish = deaf(broker.publish)
        return broker

    _replace(roles, "RabbitBroker", make)


def verdict_without_guard() -> None:
    """Record a verdict whatever dispatch the task is at."""
    _rewrite(runs, "_RECORD", "AND t.dispatch = e.dispatch AND (", "AND (")


def rescue_without_recheck() -> None:
    """Look for lost runs in one statement and move them in a later one, which asks nothing again."""
    found = "SELECT id FROM tasks WHERE worker_id IS NOT NULL AND NOT EXISTS (SELECT FROM workers w \
WHERE w.id = worker_id AND w.dead_at IS NULL)"
    guard = "WHERE t.status = 2 AND t.dispatch = l.dispatch AND t.worker_id = l.worker_id"
    guard_of_all = "AND t.dispatch = e.dispatch AND (t.status + 0 = 2) = e.running"
    start, end = (
        upkeep._RESCUE.index("    SELECT t.id, t.dispatch, t.worker_id,"),
        upkeep._RESCUE.index("), ending"),
    )
    given = "    SELECT t.id, true AS worker_gone FROM tasks t WHERE t.id = ANY (LOST)\n"
    unguarded = (
        (upkeep._RESCUE[:start] + given + upkeep._RESCUE[end:])
        .replace(guard, "WHERE true")
        .replace(guard_of_all, "")
    )

    async def rescue(
        self: upkeep.PostgresUpkeep, most: int, lease_seconds: float, *, hung: bool = True
    ) -> list[Rescued]:
        lost = [f"'{task_id}'" for (task_id,) in await self._database.fetch(found)]
        if not lost:
            return []
        await asyncio.sleep(NAP_SECONDS)
        parameters = [most, lease_seconds, upkeep.MOST_LOSSES, hung]
        listed = unguarded.replace("LOST", f"ARRAY[{','.join(lost)}]::uuid[]")
        # Lease and hung runs have no part in it any more; named, so that the number of parameters stays.
        sql = f"{listed} WHERE $2::float8 IS NOT NULL AND $4::bool IS NOT NULL"
        moved = ended(await self._database.fetch(sql, parameters))
        return [Rescued(reference, status) for reference, status in moved.items()]

    _replace(upkeep.PostgresUpkeep, "rescue", rescue)


def attempts_burnt_by_outages() -> None:
    """Count an attempt of every row that the broker did not take, whatever the reason."""

    class Strict(_Over):
        async def release(self, row_ids: Sequence[int], delay_seconds: float) -> None:
            await self._below.returned(row_ids, "not taken", 5, delay_seconds)

    _over_ledger("outbox", Strict)


def cursor_relay() -> None:
    """Never look at a row below one that was seen."""

    class Cursor(_Over):
        _last_seen = 0

        async def poll(self, most: int, lease_seconds: float) -> list[OutboxRow]:
            rows: list[OutboxRow] = await self._below.poll(most, lease_seconds)
            new = [row for row in rows if row.id > self._last_seen]
            self._last_seen = max([self._last_seen, *(row.id for row in new)])
            return new

    _over_ledger("outbox", Cursor)


def ack_before_claim() -> None:
    """Let the broker forget messages before the database has taken them over."""

    class Careless(Claim):
        async def __call__(self, wave: Wave) -> Claimed:
            await wave.parcel.settle(None)

            async def settled(_failure: BaseException | None) -> None:
                pass

            return await super().__call__(wave._replace(parcel=Parcel(wave.references, settled)))

    _replace(roles, "Claim", Careless)


def created_before_commit() -> None:
    """Answer a submission at once, and write it meanwhile."""

    class Rash(_Over):
        def __init__(self, submissions: Submissions) -> None:
            super().__init__(submissions)
            self._writing: set[asyncio.Task[object]] = set()

        async def submit(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused]:
            writing: asyncio.Task[object] = asyncio.create_task(self._write(submissions))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)
            return [Accepted(submission.id) for submission in submissions]

        async def _write(self, submissions: Sequence[Submission]) -> None:
            await self._below.submit(submissions)

    _over_ledger("submissions", Rash)


def claim_skips_locked() -> None:
    """Read a row that another transaction holds for a moment as refused."""
    free = "(SELECT id FROM tasks WHERE id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED)"
    _rewrite(runs, "_CLAIM", "ORDER BY id\n), rules", f"WHERE id IN {free} ORDER BY id\n), rules")


def resend_raises_dispatch() -> None:
    """Hand a task out anew where only its message was lost."""
    raised = """), raised AS (
    UPDATE tasks t SET dispatch = t.dispatch + 1 FROM lost l WHERE t.id = l.id
    RETURNING t.id, t.dispatch, t.priority, t.due_at
)
INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
SELECT l.id, l.dispatch, l.priority, q.name, greatest(now(), l.due_at)
FROM raised l"""
    plain = """)
INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
SELECT l.id, l.dispatch, l.priority, q.name, greatest(now(), l.due_at)
FROM lost l"""
    _rewrite(upkeep, "_RESEND", plain, raised)


def claim_takes_cancelled() -> None:
    """Start a task whose cancellation was accepted."""
    _rewrite(runs, "_CLAIM", "WHEN t.status + 0 < 2", "WHEN t.status + 0 IN (0, 1, 5)")


def retry_at_once() -> None:
    """Forget the delay of a retry, and do not ask for it at the claim, which holds it as well."""
    as_meant: Any = runs._ending

    def hasty(verdict: object) -> tuple[object, ...]:
        moves = list(as_meant(verdict))
        route, hold_seconds = 5, 7
        moves[route], moves[hold_seconds] = None, 0.0
        return tuple(moves)

    _replace(runs, "_ending", hasty)
    _rewrite(runs, "_CLAIM", "AND coalesce(t.due_at <= now(), true)", "")


def replay_keeps_dispatch() -> None:
    """Begin a replay under the dispatch that has ended."""
    _rewrite(tasks, "_REPLAY", "dispatch = t.dispatch + 1", "dispatch = t.dispatch")


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        mark_before_confirm,
        returns_not_raised,
        verdict_without_guard,
        rescue_without_recheck,
        attempts_burnt_by_outages,
        cursor_relay,
        ack_before_claim,
        created_before_commit,
        claim_skips_locked,
        resend_raises_dispatch,
        claim_takes_cancelled,
        retry_at_once,
        replay_keeps_dispatch,
    )
}


def _over_ledger(hand: str, wrap: Callable[[Any], object]) -> None:
    made = _made("PostgresLedger")

    def make(*arguments: object, **options: object) -> PostgresLedger:
        ledger: PostgresLedger = made(*arguments, **options)
        setattr(ledger, hand, wrap(getattr(ledger, hand)))
        return ledger

    _replace(roles, "PostgresLedger", make)


def _made(name: str) -> Any:
    """Name what the wiring makes now, with the pen in it."""
    return getattr(roles, name)


def _rewrite(module: object, name: str, right: str, wrong: str) -> None:
    sql: str = getattr(module, name)
    if right not in sql:
        raise LookupError(f"{name} has changed: it does not say {right!r} any more")
    _replace(module, name, sql.replace(right, wrong))


def _replace(owner: object, name: str, new: object) -> None:
    setattr(owner, name, new)
