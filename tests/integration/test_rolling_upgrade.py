"""A migration is applied while processes of the code before it work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from pipeline.ports import DeadLetters, Outbox, Runs, Submissions, Tasks, Upkeep, Workers
from storage.errors import SchemaMismatch
from storage.ledger import PostgresLedger
from storage.model import Caller, Priority, Reference, Status, TaskFilter
from tests.support.builders import beat, dead, done, retry, submission
from tests.support.ledgers import connected

if TYPE_CHECKING:
    from storage.database import Address

CALLER = Caller()
KINDS = ("echo",)
TABLES = (
    "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"
)
LATER = "INSERT INTO schema_migrations (name, checksum) VALUES ('9999_later', 'x')"


async def life(ledger: PostgresLedger) -> None:
    """Make every statement of the ledger, and see that each does what it is for."""
    worker_id = uuid4()
    await ledger.workers.beat(beat(worker_id))
    ones = [submission(), submission(key=str(uuid4()), fingerprint="f"), submission(), submission()]
    await ledger.submissions.submit(ones)
    await ledger.submissions.submit(ones)
    assert await ledger.submissions.repeated(ones[1:2])
    assert await ledger.submissions.waiting(100) >= len(ones)
    rows = await ledger.outbox.poll(1000, 60.0)
    await ledger.outbox.release([row.id for row in rows], 0.0)
    rows = await ledger.outbox.poll(1000, 60.0)
    await ledger.outbox.renew([row.id for row in rows], 60.0)
    given_up = next(row for row in rows if row.task_id == ones[3].id)
    assert await ledger.outbox.returned([given_up.id], "no queue", 1, 0.0) == [given_up.id]
    assert await ledger.outbox.retry(CALLER, given_up.id)
    assert await ledger.outbox.capacity()
    rows += await ledger.outbox.poll(1000, 60.0)
    assert await ledger.outbox.find(CALLER, status=None, before=None, limit=100)
    await ledger.outbox.settle([(row.id, 0.0) for row in rows])
    await ledger.runs.hand_back([Reference(ones[0].id, 1)], 0.0)
    assert await ledger.dead_letters.bury([Reference(ones[0].id, 1)]) == 1

    runs = await ledger.runs.claim([Reference(one.id, 1) for one in ones[:3]], worker_id, KINDS)
    assert len(await ledger.workers.held_by(worker_id)) == 3
    await ledger.runs.release([runs[2].reference], worker_id)
    assert [each.status for each in await ledger.runs.record([done(runs[0]), dead(runs[1])])] == [3, 4]
    assert [each.status for each in await ledger.runs.record([done(runs[0]), dead(runs[1])])] == [3, 4]
    [run] = await ledger.runs.claim([Reference(runs[2].task_id, 2)], worker_id, KINDS)
    await ledger.runs.record([retry(run, 1)])

    assert await ledger.tasks.get(CALLER, ones[0].id)
    assert (await ledger.tasks.get_many(CALLER, [one.id for one in ones])).keys() == {one.id for one in ones}
    assert (await ledger.tasks.find(CALLER, TaskFilter(status=Status.FAILED))).tasks
    assert await ledger.tasks.statuses([one.id for one in ones])
    assert (await ledger.tasks.ended([one.id for one in ones], 10)).keys() == {ones[0].id, ones[1].id}
    assert await ledger.tasks.cancel(CALLER, run.task_id)
    assert await ledger.tasks.replay(CALLER, runs[1].task_id, 1, "why")
    assert await ledger.tasks.replay(CALLER, runs[1].task_id, 1, "why")
    [letter] = await ledger.dead_letters.find(
        CALLER, task_id=runs[1].task_id, kind=None, before=None, limit=9
    )
    assert await ledger.dead_letters.get(CALLER, letter.id)
    await ledger.dead_letters.bury_undecodable(b"?", {}, "unreadable")

    await ledger.workers.declare_dead(60.0)
    await ledger.workers.declare_disconnected_dead(await ledger.workers.disconnected())
    await ledger.workers.close(worker_id)
    await ledger.upkeep.rescue(100, 60.0)
    await ledger.upkeep.claimed_through()
    await ledger.upkeep.unclaimed()
    await ledger.upkeep.resend(Priority.MEDIUM, None, 100)
    await ledger.upkeep.backlog(100)
    await ledger.upkeep.prune(3600.0, 3600.0, 100)
    await ledger.upkeep.restart_volatile()


class Noting:
    """A hand of the ledger that notes what is asked of it."""

    def __init__(self, hand: object, asked: set[str]) -> None:
        self._hand = hand
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        self._asked.add(name)
        return getattr(self._hand, name)


async def test_life_asks_all_there_is_to_ask(ledger_database: Address) -> None:
    hands: dict[str, type] = {
        "submissions": Submissions,
        "tasks": Tasks,
        "outbox": Outbox,
        "runs": Runs,
        "workers": Workers,
        "upkeep": Upkeep,
        "dead_letters": DeadLetters,
    }
    asked: dict[str, set[str]] = {name: set() for name in hands}
    async with PostgresLedger(ledger_database) as ledger:
        for name in hands:
            setattr(ledger, name, Noting(getattr(ledger, name), asked[name]))
        await life(ledger)
    assert asked == {
        name: {call for call in vars(port) if not call.startswith("_")} for name, port in hands.items()
    }


async def test_columns_that_newer_code_brings_disturb_no_statement(ledger_database: Address) -> None:
    # One connection each: what is asked again is what has a plan from before.
    async with PostgresLedger(ledger_database, pool_size=1) as ledger, connected(ledger_database) as operator:
        await life(ledger)
        await life(ledger)
        for (table,) in await operator.fetch(TABLES):
            await operator.script(
                f"ALTER TABLE {table} ADD later text NOT NULL DEFAULT 'x', ADD sooner integer"
            )
        await life(ledger)


async def test_a_process_that_runs_stays_ready_beside_newer_code_and_none_starts(
    ledger_database: Address,
) -> None:
    async with (
        PostgresLedger(ledger_database) as running,
        PostgresLedger(ledger_database) as starting,
        connected(ledger_database) as operator,
    ):
        await running.ready()
        await operator.script(LATER)
        await running.ready()
        with pytest.raises(SchemaMismatch, match="9999_later"):
            await starting.ready()
        # Of what it was written for nothing may be missing, though.
        await operator.script("DELETE FROM schema_migrations WHERE name = '0001_ledger'")
        with pytest.raises(SchemaMismatch, match="0001_ledger"):
            await running.ready()
