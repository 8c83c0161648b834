"""A statement that has waited for a lock asks its guards again: what it saw may be over by then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from storage.ledger import PostgresLedger
from storage.model import Accepted, Caller, KeyReused, Recorded, Reference, Status
from tests.support.builders import beat, done, submission
from tests.support.ledgers import connected, migrated
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import psqlpy

    from storage.database import Address, Database
    from storage.model import Task
    from tests.support import servers

CALLER = Caller()
KINDS = ("echo",)
DEADLOCKS = "SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()"
WAITING = """SELECT count(*)::int FROM pg_stat_activity
             WHERE wait_event_type = 'Lock' AND datname = current_database()"""


class Race:
    """Two new tasks; a statement over both is held up at the first, between its look and its leap."""

    def __init__(self, ledger: PostgresLedger, watch: Database, holder: psqlpy.Connection) -> None:
        self.ledger = ledger
        self.first, self.second = submission(), submission()
        self.references = [Reference(self.first.id, 1), Reference(self.second.id, 1)]
        self.worker_id = beat().worker_id
        self._watch = watch
        self._holder = holder

    async def send(self) -> list[int]:
        """Submit both and lease their outbox rows."""
        await self.ledger.submissions.submit([self.first, self.second])
        return [row.id for row in await self.ledger.outbox.poll(10, 60.0)]

    async def task(self) -> Task:
        """The second task."""
        task = await self.ledger.tasks.get(CALLER, self.second.id)
        assert task
        return task

    async def replay(self) -> None:
        """Take the second task from its first dispatch to its second, which nobody has sent yet."""
        await self.ledger.tasks.cancel(CALLER, self.second.id)
        await self.ledger.tasks.replay(CALLER, self.second.id, 1, "race")

    async def during(self, statement: Awaitable[Any], meanwhile: Callable[[], Awaitable[object]]) -> Any:
        """The answer of `statement`, with `meanwhile` between its snapshot and its locks."""
        await self._holder.execute("BEGIN")
        await self._holder.execute("SELECT 1 FROM tasks WHERE id = $1 FOR UPDATE", [self.first.id])
        running = asyncio.ensure_future(statement)
        await eventually(self._waits)
        await meanwhile()
        await self._holder.execute("COMMIT")
        return await running

    async def _waits(self) -> bool:
        return await self._watch.fetch(WAITING) == [(1,)]


@pytest_asyncio.fixture
async def race(postgres: servers.Database) -> AsyncIterator[Race]:
    address = await migrated(postgres)
    holder = await postgres.connect()
    async with PostgresLedger(address) as ledger, connected(address) as watch:
        yield Race(ledger, watch, holder)
    holder.close()


async def test_a_confirm_of_an_earlier_dispatch_marks_nothing(race: Race) -> None:
    rows = await race.send()

    await race.during(race.ledger.outbox.settle([(row, 0.0) for row in rows]), race.replay)

    task = await race.task()
    assert (task.status, task.dispatch) == (Status.NEW, 2)


async def test_a_return_of_an_earlier_dispatch_fails_nothing(race: Race) -> None:
    rows = await race.send()

    await race.during(race.ledger.outbox.returned(rows, "no queue", 1, 0.0), race.replay)

    task = await race.task()
    assert (task.status, task.dispatch) == (Status.NEW, 2)


async def test_a_claim_of_an_earlier_dispatch_is_refused(race: Race) -> None:
    await race.send()

    runs = await race.during(race.ledger.runs.claim(race.references, race.worker_id, KINDS), race.replay)

    assert [run.task_id for run in runs] == [race.first.id]
    assert (await race.task()).status is Status.NEW


async def test_a_cancelled_task_is_not_claimed(race: Race) -> None:
    await race.send()

    runs = await race.during(
        race.ledger.runs.claim(race.references, race.worker_id, KINDS),
        lambda: race.ledger.tasks.cancel(CALLER, race.second.id),
    )

    assert [run.task_id for run in runs] == [race.first.id]
    assert (await race.task()).status is Status.CANCELLED


async def test_a_task_claimed_meanwhile_is_refused_and_not_lost(race: Race) -> None:
    await race.send()
    other = beat().worker_id

    runs = await race.during(
        race.ledger.runs.claim(race.references, race.worker_id, KINDS),
        lambda: race.ledger.runs.claim(race.references[1:], other, KINDS),
    )

    assert [run.task_id for run in runs] == [race.first.id]
    assert [holding.reference for holding in await race.ledger.workers.held_by(other)] == race.references[1:]


async def test_a_verdict_after_a_rescue_writes_nothing(race: Race) -> None:
    await race.send()
    runs = await race.ledger.runs.claim(race.references, race.worker_id, KINDS)

    # The worker is unknown, so both runs are lost; the first is skipped, since its row is locked.
    recorded = await race.during(
        race.ledger.runs.record([done(run) for run in runs]), lambda: race.ledger.upkeep.rescue(10, 60.0)
    )

    assert recorded == [Recorded(Status.COMPLETED), Recorded(None)]
    task = await race.task()
    assert (task.status, task.dispatch, task.losses) == (Status.PENDING, 2, 1)


async def test_a_run_released_by_its_worker_is_not_released_when_it_has_ended(race: Race) -> None:
    await race.send()
    runs = await race.ledger.runs.claim(race.references, race.worker_id, KINDS)

    await race.during(
        race.ledger.runs.release(race.references, race.worker_id),
        lambda: race.ledger.runs.record([done(run) for run in runs if run.task_id == race.second.id]),
    )

    assert (await race.task()).status is Status.COMPLETED


async def test_verdicts_of_two_dispatches_in_one_group_are_answered_apart(race: Race) -> None:
    await race.send()
    claim = race.ledger.runs.claim
    [old] = await claim(race.references[1:], race.worker_id, KINDS)
    await race.ledger.runs.release([old.reference], race.worker_id)
    [new] = await claim([Reference(old.task_id, 2)], race.worker_id, KINDS)

    recorded = await race.ledger.runs.record([done(old), done(new)])

    assert recorded == [Recorded(None), Recorded(Status.COMPLETED)]


async def test_a_worker_that_is_just_beating_is_not_declared_dead(
    race: Race, postgres: servers.Database
) -> None:
    beating, silent = beat(), beat()
    for each in (beating, silent):
        await race.ledger.workers.beat(each)
    connection = await postgres.connect()
    await connection.execute("UPDATE workers SET last_seen = now() - interval '1 minute'")
    await connection.execute("BEGIN")
    await connection.execute("SELECT 1 FROM workers WHERE id = $1 FOR UPDATE", [beating.worker_id])

    assert await race.ledger.workers.declare_dead(30.0) == [silent.worker_id]

    connection.close()


async def test_keys_in_opposite_order_do_not_deadlock(ledger_database: Address) -> None:
    keys = [f"key {number}" for number in range(200)]
    async with PostgresLedger(ledger_database, pool_size=8) as ledger, connected(ledger_database) as watch:
        forth = [submission(key=key, fingerprint="same") for key in keys]
        back = [submission(key=key, fingerprint="same") for key in reversed(keys)]
        other = [submission(key=key, fingerprint="other") for key in keys[1::2] + keys[::2]]

        groups = await asyncio.gather(*(ledger.submissions.submit(group) for group in (forth, back, other)))

        assert await watch.fetch(DEADLOCKS) == [(0,)]
        assert await watch.fetch("SELECT count(*)::int FROM tasks") == [(len(keys),)]
    by_key: dict[str | None, set[object]] = {}
    for given, answers in zip((forth, back, other), groups, strict=True):
        for one, answer in zip(given, answers, strict=True):
            assert isinstance(answer, (Accepted, KeyReused))
            by_key.setdefault(one.key, set()).add(answer.task_id)
    assert [len(ids) for ids in by_key.values()] == [1] * len(keys)


async def test_pruners_do_not_get_in_each_others_way(ledger_database: Address) -> None:
    async with PostgresLedger(ledger_database, pool_size=8) as ledger, connected(ledger_database) as watch:
        await watch.script(
            """INSERT INTO idempotency_keys (tenant, key, fingerprint, task_ids, created_at)
               SELECT '', md5(n::text), '', '{}', now() - interval '1 day' FROM generate_series(1, 4000) n"""
        )

        await asyncio.gather(*(ledger.upkeep.prune(0.0, 3600.0, most) for most in [10, 500, 4000] * 4))

        assert await watch.fetch(DEADLOCKS) == [(0,)]
        assert await watch.fetch("SELECT count(*)::int FROM idempotency_keys") == [(0,)]
