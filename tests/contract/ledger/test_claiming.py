"""NEW and PENDING to IN_PROGRESS, and who is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from msgspec.structs import replace

from storage.model import Caller, Priority, Reference, Status
from tests.contract.ledger.walk import KINDS, reference
from tests.support import builders

if TYPE_CHECKING:
    from pipeline.ports import Ledger
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

CLOSE = timedelta(seconds=10)
WAITING = [Status.NEW, Status.PENDING]


@pytest.mark.parametrize("status", WAITING)
async def test_what_waits_under_its_dispatch_is_taken(walk: Walk, time: Backend, status: Status) -> None:
    task = await walk.to(
        status, payload="[1]", priority=Priority.LOW, max_retries=2, timeout_seconds=9.0, tenant="t",
        trace_context="00-1-2-01", kind_version=4,
    )  # fmt: skip

    run = await walk.claim(task)

    assert (run.reference, run.kind, run.payload) == (reference(task), "echo", b"[1]")
    assert (run.priority, run.max_retries, run.timeout_seconds, run.tenant) == (Priority.LOW, 2, 9.0, "t")
    assert (run.attempt, run.losses, run.postponements, run.replay) == (1, 0, 0, 0)
    assert (run.trace_context, run.kind_version) == ("00-1-2-01", 4)
    after = await walk.task(task.id, "t")
    assert (after.status, after.dispatch) == (Status.IN_PROGRESS, 1)
    assert after.started_at
    assert abs(after.started_at - await time.now()) < CLOSE


async def test_a_run_tells_how_long_it_has_waited_since_it_was_due(walk: Walk, time: Backend) -> None:
    at_once = await walk.pending()
    later = await walk.pending(delay_seconds=40.0)
    long_due = await walk.pending(run_at=await time.now() - timedelta(days=1))
    await time.advance(60)

    waited = [(await walk.claim(task)).waited_seconds for task in (at_once, later, long_due)]

    assert waited == pytest.approx([60.0, 20.0, 60.0], abs=CLOSE.total_seconds())


async def test_the_wait_of_a_retry_and_of_a_replay_begins_anew(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    retried, failed = await walk.running(), await walk.failed()
    await time.advance(600)
    await ledger.runs.record([builders.retry(retried, 30)])
    replayed = await ledger.tasks.replay(Caller(), failed.id, failed.dispatch, "mended")
    await walk.relay()
    await time.advance(60)

    assert replayed
    again = [await walk.claim(task) for task in (await walk.task(retried.task_id), replayed)]

    assert [run.waited_seconds for run in again] == pytest.approx([30.0, 60.0], abs=CLOSE.total_seconds())


async def test_what_is_not_due_is_handed_back_until_it_is(ledger: Ledger, walk: Walk, time: Backend) -> None:
    """A message may come early: sent twice, or by the clock of a broker that was set."""
    run = await walk.running()
    await ledger.runs.record([builders.retry(run, 60)])
    await walk.relay()
    await time.advance(50)
    early = Reference(run.task_id, 2)

    assert await walk.tries_to_claim(early) == []

    assert (await walk.task(run.task_id)).status is Status.PENDING
    assert await walk.relay() == []
    await time.advance(11)
    assert [row.reference for row in await walk.relay()] == [early]
    assert [again.reference for again in await walk.tries_to_claim(early)] == [early]


@pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_what_does_not_wait_is_refused(walk: Walk, status: Status) -> None:
    task = await walk.to(status)
    before = await walk.seen(task.id)

    assert await walk.tries_to_claim(reference(task)) == []

    assert await walk.seen(task.id) == before


@pytest.mark.parametrize("status", WAITING)
@pytest.mark.parametrize("step", [-1, 1])
async def test_another_dispatch_is_refused(ledger: Ledger, walk: Walk, status: Status, step: int) -> None:
    run = await walk.running()
    await ledger.runs.record([builders.interrupted(run)])
    if status is Status.PENDING:
        await walk.relay()
    before = await walk.seen(run.task_id)

    assert await walk.tries_to_claim(Reference(run.task_id, 2 + step)) == []

    assert await walk.seen(run.task_id) == before


async def test_an_unknown_task_is_refused(walk: Walk) -> None:
    assert await walk.tries_to_claim(Reference(builders.task_id(), 1)) == []


async def test_a_group_is_judged_one_by_one(walk: Walk) -> None:
    waiting = [await walk.pending() for _ in range(3)]
    ended = await walk.completed()
    group = [reference(task) for task in (*waiting, ended)]

    runs = await walk.tries_to_claim(*group, Reference(waiting[0].id, 9))

    assert {run.reference for run in runs} == set(group[:3])


async def test_a_reference_that_comes_twice_starts_once(walk: Walk) -> None:
    task = await walk.pending()

    assert len(await walk.tries_to_claim(reference(task), reference(task))) == 1


async def test_nothing_claimed_is_nothing(walk: Walk) -> None:
    assert await walk.tries_to_claim() == []


@pytest.mark.parametrize("case", ["as before", "kind unknown", "queue paused"])
async def test_after_a_lost_reply_a_worker_gets_what_it_holds(
    ledger: Ledger, walk: Walk, time: Backend, case: str
) -> None:
    task = await walk.pending()
    run = await walk.claim(task)
    if case == "queue paused":
        await time.pause("tasks.medium")

    [again] = await ledger.runs.claim(
        [reference(task)], walk.worker_id, () if case == "kind unknown" else KINDS
    )

    assert again.waited_seconds >= run.waited_seconds
    assert replace(again, waited_seconds=run.waited_seconds) == run
    assert await walk.rows(task.id) == []


@pytest.mark.parametrize("status", WAITING)
async def test_an_unknown_kind_waits_for_a_worker_that_knows_it(
    ledger: Ledger, walk: Walk, time: Backend, status: Status
) -> None:
    task = await walk.to(status)
    settled = {row.id for row in await walk.rows(task.id)}

    assert await ledger.runs.claim([reference(task)], uuid4(), ["sleep"]) == []

    after = await walk.seen(task.id)
    assert after.task == task
    [row] = [row for row in after.rows if row.id not in settled]
    assert (row.reference, row.route) == (reference(task), "tasks.medium")
    await time.advance(25)
    assert row.id not in [due.id for due in await ledger.outbox.poll(10, 1.0)]
    await time.advance(10)
    assert row.id in [due.id for due in await ledger.outbox.poll(10, 1.0)]
    await walk.claim(task)


async def test_a_paused_queue_gets_its_tasks_back(walk: Walk, time: Backend) -> None:
    paused, other = await walk.pending(priority=Priority.HIGH), await walk.pending(priority=Priority.LOW)
    await time.pause("tasks.high")

    runs = await walk.tries_to_claim(reference(paused), reference(other))

    assert [run.task_id for run in runs] == [other.id]
    assert (await walk.task(paused.id)).status is Status.PENDING
    await time.advance(60)
    assert await walk.relay() == []
    await time.resume("tasks.high")
    assert [row.reference for row in await walk.relay()] == [reference(paused)]
    await walk.claim(paused)


@pytest.mark.parametrize("status", WAITING)
async def test_references_that_wait_are_handed_back_under_their_dispatch(
    ledger: Ledger, walk: Walk, time: Backend, status: Status
) -> None:
    task = await walk.to(status)
    settled = {row.id for row in await walk.rows(task.id)}

    await ledger.runs.hand_back([reference(task)], 60.0)

    after = await walk.seen(task.id)
    assert after.task == task
    [row] = [row for row in after.rows if row.id not in settled]
    assert (row.reference, row.route, row.attempts) == (reference(task), "tasks.medium", 0)
    await time.advance(50)
    assert row.id not in [due.id for due in await ledger.outbox.poll(10, 1.0)]
    await time.advance(20)
    assert row.id in [due.id for due in await ledger.outbox.poll(10, 1.0)]


@pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_nothing_else_is_handed_back(ledger: Ledger, walk: Walk, status: Status) -> None:
    task = await walk.to(status)
    waiting = await walk.pending()
    before = await walk.rows(task.id)

    await ledger.runs.hand_back([reference(task), Reference(waiting.id, 2), Reference(uuid4(), 1)], 0.0)

    assert await walk.rows(task.id) == before
    assert await walk.rows(waiting.id) == []


async def test_a_worker_is_told_what_it_holds(ledger: Ledger, walk: Walk) -> None:
    kept, asked, ended = [await walk.running() for _ in range(3)]
    await walk.claim(await walk.pending(), uuid4())
    await ledger.tasks.cancel(Caller(), asked.task_id)
    await ledger.runs.record([builders.done(ended)])

    held = await ledger.workers.held_by(walk.worker_id)

    assert sorted(held) == sorted([(kept.reference, False), (asked.reference, True)])
    assert await ledger.workers.held_by(uuid4()) == []
