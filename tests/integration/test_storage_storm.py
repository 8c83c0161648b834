"""Everybody at the same rows at once: no deadlock, and every guard of the status model holds."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from storage.database import Database
from storage.errors import Unavailable
from storage.ledger import PostgresLedger
from storage.model import Caller, Interrupted, Priority, Reference, Status
from tests.support.builders import beat, cancelled, dead, done, interrupted, retry, submission
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from storage.database import Address
    from storage.model import Run, Verdict

SECONDS = 20.0
LONGEST_SECONDS = 75.0
TRANSITIONS = 50_000
CALLER = Caller()

# What section 3 of the design allows; anything else ends the statement, and with it the test.
GUARD = """
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.attempt > OLD.attempt + 1 OR NEW.attempt > NEW.max_retries + 1 THEN
        RAISE EXCEPTION 'attempt % after %', NEW.attempt, OLD.attempt;
    END IF;
    IF (NEW.status = 2) <> (NEW.worker_id IS NOT NULL) THEN
        RAISE EXCEPTION 'status % with worker %', NEW.status, NEW.worker_id;
    END IF;
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
CREATE TRIGGER guard BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION guard();

CREATE TABLE gone (id bigint);
CREATE FUNCTION going() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO gone VALUES (OLD.id); RETURN OLD; END $$;
CREATE TRIGGER going BEFORE DELETE ON outbox FOR EACH ROW WHEN (OLD.status = 0) EXECUTE FUNCTION going()
"""

# Tasks that wait and that no row sends and no janitor finds: lost.
STRANDED = """
SELECT count(*)::int FROM tasks t WHERE (t.status = 0 OR t.status = 1 AND t.queued_at IS NULL)
AND NOT EXISTS (SELECT FROM outbox o WHERE o.task_id = t.id AND o.dispatch = t.dispatch AND o.status = 0)
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
        self.recorded: set[Reference] = set()
        self.confirmed: set[int] = set()
        self.latest: dict[UUID, int] = {}
        """The highest dispatch that anybody has seen of each task."""

    def some(self, most: int = 40) -> list[Reference]:
        known = list(self.sent)
        return random.sample(known, min(len(known), most))

    def stale(self, references: Iterable[Reference]) -> set[Reference]:
        """Those that a later dispatch has overtaken, as is known before the call that they are used in."""
        return {one for one in references if one.dispatch < self.latest.get(one.task_id, 0)}

    async def submit(self) -> None:
        group = [submission(max_retries=2, priority=random.choice(list(Priority))) for _ in range(90)]
        keys = random.sample(range(200), 10)
        keyed = [submission(max_retries=2, key=str(key), fingerprint="same") for key in keys]
        # A key may be pruned between the two statements of a submit; its group then is sent again.
        with suppress(Unavailable):
            answers = await self.ledger.submissions.submit([*keyed, *group])
            self.ids += [answer.task_id for answer in answers]
        await asyncio.sleep(0.05)

    async def relay(self) -> None:
        rows = await self.ledger.outbox.poll(60, 0.5)
        self.sent.extend(row.reference for row in rows)
        for row in rows:
            self.latest[row.task_id] = max(row.dispatch, self.latest.get(row.task_id, 0))
        fate = random.random()
        if fate < 0.85:
            self.confirmed.update(row.id for row in rows)
            await self.ledger.outbox.settle([(row.id, 0.0) for row in rows])
        elif fate < 0.95:
            await self.ledger.outbox.release([row.id for row in rows], 0.0)
        else:
            await self.ledger.outbox.returned([row.id for row in rows], "no queue", 2, 0.0)

    async def claim(self) -> None:
        references, worker_id = self.some(), random.choice(self.workers)
        kinds = ["echo"] if random.random() < 0.95 else ["other"]
        fresh = set(references) - self.stale(references)
        for run in await self.ledger.runs.claim(references, worker_id, kinds):
            assert run.reference in fresh, "a stale dispatch was claimed"
            owner = self.claimed.setdefault(run.reference, worker_id)
            assert owner == worker_id, "one hand-over was claimed by two workers"
            self.runs.append(run)

    async def record(self) -> None:
        known = list(self.runs)
        runs = {run.task_id: run for run in random.sample(known, min(len(known), 40))}.values()
        if not runs:
            return
        stale = self.stale(run.reference for run in runs)
        verdicts = [self.verdict(run) for run in runs]
        answers = await self.ledger.runs.record(verdicts)
        for verdict, answer in zip(verdicts, answers, strict=True):
            reference = verdict.run.reference
            if answer.status is None:
                continue
            # That no run ends twice is the guard's. A repetition is answered like the first, and so is an
            # interruption of what `release` has dispatched again.
            again = reference in self.recorded or isinstance(verdict, Interrupted)
            assert again or reference not in stale, "a stale dispatch was recorded"
            self.recorded.add(reference)

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
        await self.ledger.workers.declare_dead(1.0)
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
        await self.ledger.upkeep.prune(3600.0, 0.5, random.choice([5, 50, 500]))

    def chosen(self, count: int) -> list[UUID]:
        return random.sample(self.ids, min(len(self.ids), count))


async def test_a_storm_of_actors_deadlocks_nowhere_and_breaks_no_guard(ledger_database: Address) -> None:
    watch = Database(ledger_database, size=2)
    await watch.script(GUARD)
    async with PostgresLedger(ledger_database, pool_size=16, timeout_seconds=30.0) as ledger:
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
    gone = {row_id for (row_id,) in await watch.fetch("SELECT id FROM gone")}
    [(stranded,)] = await watch.fetch(STRANDED)
    await watch.close()
    assert deadlocks == 0
    assert not gone - storm.confirmed, "rows left the outbox that nobody had confirmed"
    assert stranded == 0
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
