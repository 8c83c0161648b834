"""Who is at work, and what becomes of the runs of who is not."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from storage.model import Caller, Priority, Reason, Reference, Status
from tests.contract.ledger.walk import KINDS, LEASE_SECONDS
from tests.support import builders

if TYPE_CHECKING:
    from pipeline.ports import Ledger
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

CALLER = Caller()
CLOSE = timedelta(seconds=10)
HIGH, MEDIUM, LOW = Priority


async def test_a_worker_not_seen_for_a_lease_is_declared_dead_once(ledger: Ledger, time: Backend) -> None:
    late, seen = builders.beat(), builders.beat()
    assert await ledger.workers.beat(late)
    await time.advance(LEASE_SECONDS - 5)
    assert await ledger.workers.beat(seen)
    assert await ledger.workers.declare_dead(LEASE_SECONDS) == []

    await time.advance(10)

    assert await ledger.workers.declare_dead(LEASE_SECONDS) == [late.worker_id]
    assert await ledger.workers.declare_dead(LEASE_SECONDS) == []
    assert not await ledger.workers.beat(late)
    assert await ledger.workers.beat(seen)


async def test_a_beat_renews_the_lease(ledger: Ledger, time: Backend) -> None:
    beat = builders.beat()
    for _ in range(3):
        assert await ledger.workers.beat(beat)
        await time.advance(LEASE_SECONDS - 5)

    assert await ledger.workers.declare_dead(LEASE_SECONDS) == []


async def test_a_worker_that_signed_off_is_not_declared_dead(ledger: Ledger, time: Backend) -> None:
    beat = builders.beat()
    await ledger.workers.beat(beat)

    await ledger.workers.close(beat.worker_id)

    await time.advance(LEASE_SECONDS * 2)
    assert await ledger.workers.declare_dead(LEASE_SECONDS) == []
    assert (await ledger.outbox.capacity())[HIGH].workers == 0


async def test_a_worker_whose_connection_has_ended_shows_until_it_beats_again(
    ledger: Ledger, time: Backend
) -> None:
    cut, other = builders.beat(), builders.beat()
    before = await time.now()
    for beat in (other, cut):
        assert await ledger.workers.beat(beat)
    assert await ledger.workers.disconnected() == []

    await time.disconnect(cut.worker_id)
    assert await ledger.workers.beat(other)

    [one] = await ledger.workers.disconnected()
    assert one.worker_id == cut.worker_id
    assert timedelta() <= one.last_seen - before < CLOSE
    assert await ledger.workers.disconnected() == [one]

    assert await ledger.workers.beat(cut)
    assert await ledger.workers.disconnected() == []


@pytest.mark.parametrize("how", ["signed off", "declared dead"])
async def test_a_worker_that_is_gone_anyway_does_not_show_as_disconnected(
    ledger: Ledger, time: Backend, how: str
) -> None:
    beat = builders.beat()
    await ledger.workers.beat(beat)
    await time.disconnect(beat.worker_id)

    if how == "signed off":
        await ledger.workers.close(beat.worker_id)
    else:
        await ledger.workers.declare_disconnected_dead(await ledger.workers.disconnected())

    assert await ledger.workers.disconnected() == []


async def test_a_disconnected_worker_is_declared_dead_before_its_lease_is_over(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    run = await walk.running()
    await time.disconnect(walk.worker_id)
    await ledger.workers.beat(builders.beat())

    disconnected = await ledger.workers.disconnected()
    assert await ledger.workers.declare_disconnected_dead(disconnected) == [walk.worker_id]

    assert await ledger.workers.declare_disconnected_dead(disconnected) == []
    assert not await ledger.workers.beat(builders.beat(walk.worker_id))
    assert [rescued.reference for rescued in await ledger.upkeep.rescue(10, LEASE_SECONDS)] == [run.reference]


async def test_a_worker_that_has_beaten_since_is_not_declared_dead(ledger: Ledger, time: Backend) -> None:
    beat = builders.beat()
    await ledger.workers.beat(beat)
    await time.disconnect(beat.worker_id)
    disconnected = await ledger.workers.disconnected()
    assert disconnected
    await time.advance(1)
    await ledger.workers.beat(beat)

    assert await ledger.workers.declare_disconnected_dead(disconnected) == []


async def lose(walk: Walk, time: Backend) -> None:
    """Let the walk's worker die, and rescue what it held."""
    await time.advance(LEASE_SECONDS + 5)
    await walk.ledger.workers.declare_dead(LEASE_SECONDS)
    walk.worker_id = uuid4()
    assert len(await walk.ledger.upkeep.rescue(10, LEASE_SECONDS)) == 1


async def test_the_runs_of_a_dead_worker_are_dispatched_again(walk: Walk, time: Backend) -> None:
    run = await walk.running(timeout_seconds=900.0)

    await lose(walk, time)

    task, [row], letters = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, task.attempt, task.losses) == (Status.PENDING, 2, 1, 1)
    assert (row.reference, row.route, letters) == (Reference(task.id, 2), "tasks.medium", [])
    assert [sent.id for sent in await walk.relay()] == [row.id]
    again = await walk.claim(task)
    assert (again.losses, again.attempt) == (1, 1)
    assert [(error.type, error.reason) for error in task.errors] == [("WorkerLost", Reason.WORKER_LOST)]


async def test_so_are_the_runs_of_a_worker_nobody_knows(ledger: Ledger, walk: Walk) -> None:
    task = await walk.pending()
    await walk.tries_to_claim(Reference(task.id, 1))

    assert len(await ledger.upkeep.rescue(10, LEASE_SECONDS)) == 1

    assert (await walk.task(task.id)).losses == 1


async def test_so_are_the_runs_left_by_a_worker_that_signed_off(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()
    await ledger.workers.close(walk.worker_id)

    assert len(await ledger.upkeep.rescue(10, LEASE_SECONDS)) == 1

    assert (await walk.task(run.task_id)).status is Status.PENDING


async def test_a_worker_declared_dead_claims_nothing_and_what_it_was_sent_comes_again(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    run, waiting = await walk.running(), await walk.pending()
    await time.advance(LEASE_SECONDS + 5)
    await ledger.workers.declare_dead(LEASE_SECONDS)

    again = await ledger.runs.claim([run.reference, Reference(waiting.id, 1)], walk.worker_id, KINDS)

    assert [one.reference for one in again] == [run.reference], "what it holds is the janitor's to take"
    task, [row], _ = await walk.seen(waiting.id)
    assert (task.status, row.reference, row.route) == (Status.PENDING, Reference(task.id, 1), "tasks.medium")
    await time.advance(5)
    assert [sent.id for sent in await walk.relay()] == [row.id]
    assert await walk.tries_to_claim(row.reference)
    assert (await walk.task(task.id)).losses == 0


async def test_the_runs_of_a_live_worker_are_left_alone(ledger: Ledger, walk: Walk, time: Backend) -> None:
    run = await walk.running(timeout_seconds=900.0)
    await time.advance(600)
    await ledger.workers.beat(builders.beat(walk.worker_id))
    before = await walk.seen(run.task_id)

    assert len(await ledger.upkeep.rescue(10, LEASE_SECONDS)) == 0

    assert await walk.seen(run.task_id) == before


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.IN_PROGRESS])
async def test_a_rescue_moves_no_task_that_does_not_run(
    ledger: Ledger, walk: Walk, time: Backend, status: Status
) -> None:
    task = await walk.to(status)
    await time.advance(1000)
    await ledger.workers.declare_dead(LEASE_SECONDS)
    before = await walk.seen(task.id)

    assert len(await ledger.upkeep.rescue(10, LEASE_SECONDS)) == 0

    assert await walk.seen(task.id) == before


async def test_a_lost_run_whose_cancel_was_asked_is_cancelled(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    run = await walk.running()
    await ledger.tasks.cancel(CALLER, run.task_id)

    await lose(walk, time)

    task, rows, letters = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, rows, letters) == (Status.CANCELLED, 1, [], [])
    assert task.finished_at
    assert [error.reason for error in task.errors] == [Reason.WORKER_LOST]


async def test_a_cancel_that_was_asked_goes_before_the_fifth_loss(walk: Walk, time: Backend) -> None:
    task = await walk.pending()
    for _ in range(4):
        await walk.claim(task)
        await lose(walk, time)
        task = await walk.task(task.id)
    await walk.claim(task)
    await walk.ledger.tasks.cancel(CALLER, task.id)

    await lose(walk, time)

    task = await walk.task(task.id)
    assert (task.status, task.losses, task.reason) == (Status.CANCELLED, 5, None)
    assert [error.reason for error in task.errors] == [Reason.WORKER_LOST] * 5


async def test_the_fifth_lost_worker_is_the_last(walk: Walk, time: Backend) -> None:
    task = await walk.pending(max_retries=0)
    for _ in range(5):
        await walk.claim(task)
        await lose(walk, time)
        task = await walk.task(task.id)
        assert task.status is (Status.FAILED if task.losses == 5 else Status.PENDING)

    task, rows, [letter] = await walk.seen(task.id)
    assert (task.reason, task.losses, task.dispatch, task.attempt) == (Reason.KILLS_WORKER, 5, 5, 1)
    assert [error.reason for error in task.errors] == [Reason.WORKER_LOST] * 4 + [Reason.KILLS_WORKER]
    assert task.finished_at
    assert (letter.reason, letter.dispatch, letter.losses) == (Reason.KILLS_WORKER, 5, 5)
    assert rows[0].route == "tasks.dlq"
    assert rows[0].reference == Reference(task.id, 5)


async def hang(walk: Walk, time: Backend, seconds: float) -> int:
    """Let the runs take that long with their worker alive; how many are rescued then."""
    await time.advance(seconds)
    await walk.ledger.workers.beat(builders.beat(walk.worker_id))
    return len(await walk.ledger.upkeep.rescue(10, LEASE_SECONDS))


async def test_a_hung_run_counts_as_an_attempt_after_timeout_and_two_leases(
    walk: Walk, time: Backend
) -> None:
    run = await walk.running(timeout_seconds=100.0, max_retries=1)
    assert await hang(walk, time, 100 + 2 * LEASE_SECONDS - 10) == 0

    assert await hang(walk, time, 20) == 1

    task, [row], _ = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, task.attempt, task.losses) == (Status.PENDING, 2, 2, 0)
    assert task.errors[-1].reason == Reason.TIMEOUT
    assert (row.reference, row.route) == (Reference(task.id, 2), "tasks.medium")


async def test_a_hung_run_is_left_where_these_are_not_asked_for(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    run = await walk.running(timeout_seconds=1.0)
    await time.advance(100)
    await ledger.workers.beat(builders.beat(walk.worker_id))
    before = await walk.seen(run.task_id)

    assert await ledger.upkeep.rescue(10, LEASE_SECONDS, hung=False) == []

    assert await walk.seen(run.task_id) == before
    await lose(walk, time)
    assert (await walk.task(run.task_id)).losses == 1


async def test_the_last_attempt_that_hangs_fails_the_task(walk: Walk, time: Backend) -> None:
    run = await walk.running(timeout_seconds=1.0, max_retries=0)

    assert await hang(walk, time, 100) == 1

    task, [row], [letter] = await walk.seen(run.task_id)
    assert (task.status, task.reason, task.attempt) == (Status.FAILED, Reason.TIMEOUT, 1)
    assert (letter.reason, row.route) == (Reason.TIMEOUT, "tasks.dlq")


async def test_a_hung_run_whose_cancel_was_asked_is_cancelled(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    run = await walk.running(timeout_seconds=1.0)
    await ledger.tasks.cancel(CALLER, run.task_id)

    assert await hang(walk, time, 100) == 1

    task, rows, letters = await walk.seen(run.task_id)
    assert (task.status, rows, letters) == (Status.CANCELLED, [], [])


async def test_a_rescue_is_bounded(ledger: Ledger, walk: Walk) -> None:
    tasks = [await walk.pending() for _ in range(5)]
    await walk.tries_to_claim(*(Reference(task.id, 1) for task in tasks))

    assert [len(await ledger.upkeep.rescue(2, LEASE_SECONDS)) for _ in range(4)] == [2, 2, 1, 0]


async def test_a_worker_releases_what_it_does_not_hold(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()

    await ledger.runs.release([run.reference], walk.worker_id)

    task, [row], letters = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, task.attempt, task.losses) == (Status.PENDING, 2, 1, 0)
    assert (row.reference, row.route, letters) == (Reference(task.id, 2), "tasks.medium", [])
    assert await ledger.workers.held_by(walk.worker_id) == []


async def test_a_released_run_whose_cancel_was_asked_is_cancelled(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()
    await ledger.tasks.cancel(CALLER, run.task_id)

    await ledger.runs.release([run.reference], walk.worker_id)

    task, rows, _ = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, rows) == (Status.CANCELLED, 1, [])


@pytest.mark.parametrize("case", ["another worker", "a stale dispatch", "a later dispatch", "ended"])
async def test_nothing_else_is_released(ledger: Ledger, walk: Walk, case: str) -> None:
    run = await walk.running()
    await ledger.runs.record([builders.interrupted(run)])
    await walk.relay()
    run = await walk.claim(await walk.task(run.task_id))
    if case == "ended":
        await ledger.runs.record([builders.done(run)])
    step = {"a stale dispatch": -1, "a later dispatch": 1}.get(case, 0)
    worker_id = uuid4() if case == "another worker" else walk.worker_id
    before = await walk.seen(run.task_id)

    await ledger.runs.release([Reference(run.task_id, run.dispatch + step)], worker_id)

    assert await walk.seen(run.task_id) == before


async def test_what_live_workers_have_claimed_and_not_yet_claimed(ledger: Ledger, time: Backend) -> None:
    now = await time.now()
    moments = [now - timedelta(seconds=number) for number in range(3)]
    await ledger.workers.beat(builders.beat(unclaimed=9, claimed_through=(now, now, now)))
    await time.advance(LEASE_SECONDS + 5)
    await ledger.workers.declare_dead(LEASE_SECONDS)
    await ledger.workers.beat(builders.beat(unclaimed=3, claimed_through=(moments[2], None, None)))
    high = builders.beat(unclaimed=4, queues=("tasks.high",), claimed_through=(moments[1], moments[2], None))
    await ledger.workers.beat(high)

    assert await ledger.upkeep.claimed_through() == {HIGH: moments[1], MEDIUM: moments[2]}
    assert await ledger.upkeep.unclaimed() == {HIGH: 7, MEDIUM: 3, LOW: 3}


async def test_the_latest_beat_counts(ledger: Ledger) -> None:
    beat = builders.beat(unclaimed=9, free=1)
    await ledger.workers.beat(beat)
    await ledger.workers.beat(builders.beat(beat.worker_id, unclaimed=2, free=5))

    assert (await ledger.upkeep.unclaimed())[LOW] == 2
    assert (await ledger.outbox.capacity())[LOW] == (1, 5)


async def test_without_workers_nothing_is_claimed(ledger: Ledger) -> None:
    assert await ledger.upkeep.claimed_through() == {}
    assert await ledger.upkeep.unclaimed() == {HIGH: 0, MEDIUM: 0, LOW: 0}
