"""Everybody at the same rows at once: no deadlock, and every guard of the status model holds."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from storage.database import Address, Database
from storage.ledger import PostgresLedger
from storage.migrate import migrate
from storage.model import Caller, Priority, Reference, Status
from tests.support.builders import beat, cancelled, dead, done, interrupted, retry, submission
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from storage.model import Run, Verdict
    from tests.support import servers

SECONDS = 20.0
LONGEST_SECONDS = 75.0
TRANSITIONS = 50_000
CALLER = Caller()

# What section 3 of the design allows; anything else ends the statement, and with it the test.
GUARD = """
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.attempt > NEW.max_retries + 1 THEN RAISE EXCEPTION 'attempt % of %', NEW.attempt, NEW.id; END IF;
    IF OLD.status = NEW.status AND OLD.dispatch = NEW.dispatch THEN
        IF OLD.status = 2 AND OLD.worker_id IS DISTINCT FROM NEW.worker_id THEN
            RAISE EXCEPTION 'a claim was taken from its worker';
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.dispatch = OLD.dispatch AND (OLD.status, NEW.status) IN
        ((0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (2, 5), (0, 5), (1, 5), (0, 4), (1, 4)) THEN
        RETURN NEW;
    END IF;
    IF NEW.dispatch = OLD.dispatch + 1 AND (OLD.status, NEW.status) = (2, 1) THEN RETURN NEW; END IF;
    IF NEW.dispatch = OLD.dispatch + 1 AND (OLD.status, NEW.status) IN ((4, 0), (5, 0))
        AND NEW.replay = OLD.replay + 1 THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'no edge: status % to %, dispatch % to %',
        OLD.status, NEW.status, OLD.dispatch, NEW.dispatch;
END $$;
CREATE TRIGGER guard BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION guard()
"""


class Storm:
    """What the actors share: references that were sent, runs that were claimed, tasks that exist."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self.ledger = ledger
        self.ids: list[UUID] = []
        self.sent: deque[Reference] = deque(maxlen=3_000)
        self.runs: deque[Run] = deque(maxlen=3_000)
        self.workers = [uuid4() for _ in range(8)]
        self.claimed: dict[Reference, UUID] = {}

    def some(self, most: int = 40) -> list[Reference]:
        known = list(self.sent)
        return random.sample(known, min(len(known), most))

    async def submit(self) -> None:
        group = [submission(max_retries=2, priority=random.choice(list(Priority))) for _ in range(100)]
        await self.ledger.submissions.submit(group)
        self.ids += [one.id for one in group]
        await asyncio.sleep(0.05)

    async def relay(self) -> None:
        rows = await self.ledger.outbox.poll(60, 0.5)
        self.sent.extend(row.reference for row in rows)
        fate = random.random()
        if fate < 0.85:
            await self.ledger.outbox.settle([(row.id, 0.0) for row in rows])
        elif fate < 0.95:
            await self.ledger.outbox.release([row.id for row in rows], 0.0)
        else:
            await self.ledger.outbox.returned([row.id for row in rows], "no queue", 2, 0.0)

    async def claim(self) -> None:
        references, worker_id = self.some(), random.choice(self.workers)
        kinds = ["echo"] if random.random() < 0.95 else ["other"]
        for run in await self.ledger.runs.claim(references, worker_id, kinds):
            owner = self.claimed.setdefault(run.reference, worker_id)
            assert owner == worker_id, "one hand-over was claimed by two workers"
            self.runs.append(run)

    async def record(self) -> None:
        known = list(self.runs)
        verdicts = [self.verdict(run) for run in random.sample(known, min(len(known), 40))]
        if verdicts:
            await self.ledger.runs.record(verdicts)

    def verdict(self, run: Run) -> Verdict:
        ways: list[Verdict] = [done(run), dead(run), cancelled(run), interrupted(run)]
        if run.attempt <= run.max_retries:
            ways.append(retry(run, 1))
        return random.choice(ways)

    async def cancel(self) -> None:
        await asyncio.gather(*(self.ledger.tasks.cancel(CALLER, one) for one in self.chosen(4)))

    async def rescue(self) -> None:
        worker_id = random.choice(self.workers)
        if random.random() < 0.5:
            await self.ledger.workers.beat(beat(worker_id))
        else:
            await self.ledger.workers.close(worker_id)
        await self.ledger.upkeep.rescue(50, 60.0)
        await self.ledger.upkeep.resend(random.choice(list(Priority)), None, 50)
        await self.ledger.runs.release(self.some(10), worker_id)

    async def operate(self) -> None:
        for one in self.chosen(8):
            task = await self.ledger.tasks.get(CALLER, one)
            if task is not None and task.status in {Status.FAILED, Status.CANCELLED}:
                await self.ledger.tasks.replay(CALLER, one, task.dispatch, "storm")
        for row in await self.ledger.outbox.find(CALLER, status=None, before=None, limit=5):
            await self.ledger.outbox.retry(CALLER, row.id)
        await self.ledger.runs.hand_back(self.some(5), 0.0)
        await self.ledger.dead_letters.bury(self.some(20))
        await self.ledger.upkeep.prune(3600.0, 3600.0, 50)

    def chosen(self, count: int) -> list[UUID]:
        return random.sample(self.ids, min(len(self.ids), count))


async def test_a_storm_of_actors_deadlocks_nowhere_and_breaks_no_guard(postgres: servers.Database) -> None:
    address = Address(
        host=postgres.host,
        port=postgres.port,
        user=postgres.user,
        password=postgres.password,
        database=postgres.database,
    )
    watch = Database(address, size=2)
    await migrate(watch)
    await watch.script(GUARD)
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(PostgresLedger(address, pool_size=16, timeout_seconds=30.0))
        storm = Storm(ledger)
        actors = [storm.relay, storm.claim, storm.record, storm.cancel, storm.rescue] * 8
        stop = asyncio.Event()
        started_at = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for actor in [storm.submit, storm.operate, storm.operate, *actors]:
                group.create_task(until(stop, actor))

            async def enough() -> bool:
                elapsed = time.monotonic() - started_at
                moved = await transitions(watch)
                return elapsed > SECONDS and (moved >= TRANSITIONS or elapsed > LONGEST_SECONDS)

            await eventually(enough, seconds=LONGEST_SECONDS + 30)
            stop.set()
    moved = await transitions(watch)
    await watch.fetch("SELECT pg_stat_clear_snapshot()::text")
    [(deadlocks,)] = await watch.fetch(
        "SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()"
    )
    await watch.close()
    assert deadlocks == 0
    assert moved >= TRANSITIONS


async def until(stop: asyncio.Event, act: Callable[[], Awaitable[None]]) -> None:
    while not stop.is_set():
        await act()
        await asyncio.sleep(0)


async def transitions(watch: Database) -> int:
    [(updates,)] = await watch.fetch(
        "SELECT coalesce(sum(n_tup_upd), 0)::int FROM pg_stat_user_tables WHERE relname = 'tasks'"
    )
    return int(updates)
