"""Two want the same task at once: one has it, and both are told the truth."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import pytest_asyncio

from storage import upkeep
from storage.ledger import PostgresLedger
from storage.model import Caller, Recorded, Reference, Rescued, Status
from tests.support.builders import beat, dead, done, retry, submission
from tests.support.ledgers import connected, migrated
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    import pytest

    from storage.database import Address, Database
    from storage.model import Run, Task
    from tests.support import servers

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

CALLER = Caller()
KINDS = ("echo",)
PAIRS = 300
WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"

# Of a live worker 10,000 runs that may take a day, of a dead one the task that came last.
RUNNING = """
INSERT INTO workers (id, queues, slots, running, free, unclaimed, claimed_through)
    VALUES ('00000000-0000-4000-8000-000000000001', '{tasks.medium}', 10000, 10000, 0, 0, '{}');
INSERT INTO tasks (id, kind, priority, status, max_retries, timeout_seconds, started_at, worker_id)
    SELECT ('01000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'echo', 2, 2, 3, 86400, now(),
           CASE WHEN n > 10000 THEN gen_random_uuid() ELSE '00000000-0000-4000-8000-000000000001'::uuid END
    FROM generate_series(1, 10001) n;
ANALYZE tasks
"""


@pytest_asyncio.fixture
async def ledger(ledger_database: Address) -> AsyncIterator[PostgresLedger]:
    async with PostgresLedger(ledger_database, pool_size=8) as ledger:
        yield ledger


@pytest_asyncio.fixture
async def watch(ledger_database: Address) -> AsyncIterator[Database]:
    async with connected(ledger_database) as watch:
        yield watch


async def waiting(ledger: PostgresLedger, count: int) -> list[Reference]:
    """Tasks at the broker."""
    await ledger.submissions.submit([submission() for _ in range(count)])
    rows = await ledger.outbox.poll(1000, 60.0)
    await ledger.outbox.settle([(row.id, 0.0) for row in rows])
    return [row.reference for row in rows]


async def running(ledger: PostgresLedger, count: int) -> list[Run]:
    """Tasks in the hands of a worker that nobody knows, and that is lost therefore."""
    return await ledger.runs.claim(await waiting(ledger, count), uuid4(), KINDS)


async def seen(ledger: PostgresLedger, reference: Reference) -> Task:
    task = await ledger.tasks.get(CALLER, reference.task_id)
    assert task
    return task


async def at_once(one: Awaitable[A], other: Awaitable[B]) -> tuple[A, B]:
    """Both, now this one and now the other a little sooner."""

    async def soon(call: Awaitable[T]) -> T:
        await asyncio.sleep(random.uniform(0.0, 0.005))
        return await call

    return await asyncio.gather(soon(one), soon(other))


async def cancelled(ledger: PostgresLedger, reference: Reference) -> Task:
    task = await ledger.tasks.cancel(CALLER, reference.task_id)
    assert task
    return task


async def test_of_a_claim_and_a_cancel_at_once_one_is_refused(
    ledger: PostgresLedger, ledger_database: Address, watch: Database
) -> None:
    worker_id = beat().worker_id
    references = await waiting(ledger, 1000)
    async with PostgresLedger(ledger_database) as other:
        await other.ready()
        # One statement claims them all, on a connection of its own, while they are cancelled one by one.
        cancelling = [asyncio.create_task(cancelled(ledger, reference)) for reference in references]
        await eventually(lambda: watch.fetch("SELECT FROM tasks WHERE status = 5 LIMIT 1"))
        runs = await other.runs.claim(references, worker_id, KINDS)
        answers = await asyncio.gather(*cancelling)

    claimed = {run.reference for run in runs}
    for reference, answer in zip(references, answers, strict=True):
        after = await seen(ledger, reference)
        assert (after.status, after.cancel_requested) == (answer.status, True)
        assert after.status is (Status.IN_PROGRESS if reference in claimed else Status.CANCELLED)
        assert (after.finished_at is None) is (reference in claimed), "a cancelled task came back to life"
    assert 0 < len(claimed) < 1000, "one of the two always came first"
    assert {run.reference for run in await ledger.runs.claim(references, worker_id, KINDS)} == claimed


async def test_of_a_success_and_a_cancel_at_once_the_success_stands(ledger: PostgresLedger) -> None:
    async def race(run: Run) -> bool:
        [recorded], answer = await at_once(ledger.runs.record([done(run)]), cancelled(ledger, run.reference))
        assert recorded == Recorded(Status.COMPLETED)
        after = await seen(ledger, run.reference)
        assert after.status is Status.COMPLETED
        # Told that it was too late, or that the task was asked to stop.
        assert answer.status is Status.COMPLETED or after.cancel_requested
        return after.cancel_requested

    asked = await asyncio.gather(*map(race, await running(ledger, PAIRS)))
    assert set(asked) == {True, False}, "one of the two always came first"


async def test_of_a_failure_and_a_cancel_at_once_nothing_is_tried_again(ledger: PostgresLedger) -> None:
    async def race(run: Run) -> Status | None:
        [recorded], _ = await at_once(ledger.runs.record([retry(run, 1)]), cancelled(ledger, run.reference))
        assert (await seen(ledger, run.reference)).status is Status.CANCELLED
        again = [Reference(run.task_id, dispatch) for dispatch in (1, 2)]
        assert await ledger.runs.claim(again, uuid4(), KINDS) == []
        return recorded.status

    ends = await asyncio.gather(*map(race, await running(ledger, PAIRS)))
    assert set(ends) == {Status.PENDING, Status.CANCELLED}, "one of the two always came first"


async def test_a_replay_that_is_asked_many_times_at_once_is_one(
    ledger: PostgresLedger, watch: Database
) -> None:
    runs = await running(ledger, 50)
    await ledger.runs.record([dead(run) for run in runs])
    await ledger.outbox.settle([(row.id, 0.0) for row in await ledger.outbox.poll(1000, 60.0)])

    async def race(run: Run) -> None:
        replays = [ledger.tasks.replay(CALLER, run.task_id, 1, "twice") for _ in range(4)]
        # The notice in the DLQ is evidence and nothing more, whenever somebody reads it.
        answers, _ = await asyncio.gather(
            asyncio.gather(*replays), ledger.dead_letters.bury([run.reference, run.reference])
        )
        assert [(task.dispatch, task.replay) for task in answers if task] == [(2, 1)] * 4

    await asyncio.gather(*map(race, runs))
    rows = await ledger.outbox.poll(1000, 60.0)
    assert sorted(row.reference for row in rows) == sorted(Reference(run.task_id, 2) for run in runs)
    assert await watch.fetch("SELECT count(*)::int FROM audit") == [(50,)]
    assert await watch.fetch("SELECT count(*)::int FROM dead_letters") == [(50,)]


async def test_a_run_that_ends_while_it_is_being_rescued_is_not_rescued(
    ledger: PostgresLedger, postgres: servers.Database, watch: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = "w.id IS NULL AS worker_gone"
    held_up = "w.id IS NULL AND pg_advisory_xact_lock_shared(7)::text IS NOT NULL AS worker_gone"
    assert look in upkeep._RESCUE
    monkeypatch.setattr(upkeep, "_RESCUE", upkeep._RESCUE.replace(look, held_up))
    ending, lost = await running(ledger, 2)
    holder = await postgres.connect()
    await holder.execute("SELECT pg_advisory_lock(7)::text")

    rescuing = asyncio.create_task(ledger.upkeep.rescue(10, 60.0))
    await eventually(lambda: watch.fetch(WAITING))
    assert await ledger.runs.record([done(ending)]) == [Recorded(Status.COMPLETED)]
    holder.close()

    assert await rescuing == [Rescued(lost.reference, Status.PENDING)]
    ended = await seen(ledger, ending.reference)
    assert (ended.status, ended.dispatch, ended.losses) == (Status.COMPLETED, 1, 0)


async def test_a_lost_run_is_found_behind_ten_thousand_that_live(
    ledger: PostgresLedger, watch: Database
) -> None:
    await watch.script(RUNNING)
    [rescued] = await ledger.upkeep.rescue(500, 60.0)
    assert rescued.reference.task_id.int & 0xFFFF_FFFF == 10_001
    assert await ledger.upkeep.rescue(500, 60.0) == []


async def test_rows_that_somebody_holds_do_not_keep_the_others_from_rescue(
    postgres: servers.Database,
) -> None:
    address = await migrated(postgres)
    async with PostgresLedger(address) as ledger:
        runs = sorted(run.reference for run in await running(ledger, 15))
        holder = await postgres.connect()
        await holder.execute("BEGIN")
        await holder.execute(
            "SELECT 1 FROM tasks WHERE id = ANY ($1::uuid[]) FOR UPDATE", [[one.task_id for one in runs[:10]]]
        )

        rescued = await ledger.upkeep.rescue(10, 60.0)

        assert sorted(each.reference for each in rescued) == runs[10:]
        await holder.execute("COMMIT")
        assert len(await ledger.upkeep.rescue(10, 60.0)) == 10
        holder.close()
