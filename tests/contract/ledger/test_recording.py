"""IN_PROGRESS to what a verdict says, with everything that follows from it in the same statement."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from storage.errors import Refused
from storage.model import Caller, OutboxStatus, Reason, Recorded, Reference, Status
from tests.contract.ledger.walk import LEASE_SECONDS, reference
from tests.support import builders

if TYPE_CHECKING:
    from pipeline.ports import Ledger
    from storage.model import Run, Task, Verdict
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

CALLER = Caller()
CLOSE = timedelta(seconds=10)


def as_claimed(task: Task) -> Run:
    """The run that somebody may believe to hold of a task."""
    return builders.run(task_id=task.id, dispatch=task.dispatch)


async def test_done_completes_the_task_with_its_result(ledger: Ledger, walk: Walk, time: Backend) -> None:
    run = await walk.running()

    assert await ledger.runs.record([builders.done(run, '{"ä": [1e400]}')]) == [Recorded(Status.COMPLETED)]

    task, rows, letters = await walk.seen(run.task_id)
    assert (task.status, task.result, task.reason) == (Status.COMPLETED, '{"ä": [1e400]}'.encode(), None)
    assert task.finished_at
    assert abs(task.finished_at - await time.now()) < CLOSE
    assert (rows, letters) == ([], [])
    assert await ledger.workers.held_by(walk.worker_id) == []


async def test_done_counts_also_when_a_cancel_was_asked(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()
    await ledger.tasks.cancel(CALLER, run.task_id)

    assert await ledger.runs.record([builders.done(run)]) == [Recorded(Status.COMPLETED)]

    assert (await walk.task(run.task_id)).status is Status.COMPLETED


@pytest.mark.parametrize("number", range(1, 5), ids=["retry", "dead", "cancelled", "interrupted"])
async def test_any_other_end_is_a_cancel_where_that_was_asked(
    ledger: Ledger, walk: Walk, number: int
) -> None:
    run = await walk.running()
    await ledger.tasks.cancel(CALLER, run.task_id)

    assert await ledger.runs.record([builders.every_verdict(run)[number]]) == [Recorded(Status.CANCELLED)]

    task, rows, letters = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, task.reason, task.cancel_requested) == (
        Status.CANCELLED,
        1,
        None,
        True,
    )
    assert task.finished_at
    assert (rows, letters) == ([], [])
    assert await ledger.workers.held_by(walk.worker_id) == []


async def test_a_cancelled_run_ends_the_task(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()

    assert await ledger.runs.record([builders.cancelled(run)]) == [Recorded(Status.CANCELLED)]

    task, rows, letters = await walk.seen(run.task_id)
    assert (task.status, rows, letters) == (Status.CANCELLED, [], [])


async def test_a_retry_goes_by_its_route_at_once(ledger: Ledger, walk: Walk, time: Backend) -> None:
    run = await walk.running()

    assert await ledger.runs.record([builders.retry(run, 30)]) == [Recorded(Status.PENDING)]

    task, [row], letters = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, task.attempt, letters) == (Status.PENDING, 2, 2, [])
    assert task.due_at
    assert abs(task.due_at - await time.now() - timedelta(seconds=30)) < CLOSE
    assert (row.reference, row.route) == (Reference(task.id, 2), "tasks.medium.retry.30s")
    [error] = task.errors
    assert (error.dispatch, error.attempt, error.type, error.message) == (1, 1, "ValueError", "boom")
    assert error.reason == Reason.ERROR
    assert abs(error.at - await time.now()) < CLOSE
    assert [sent.id for sent in await walk.relay()] == [row.id]
    assert await ledger.workers.held_by(walk.worker_id) == []
    await time.advance(31)
    again = await walk.claim(task)
    assert (again.dispatch, again.attempt, again.postponements) == (2, 2, 0)


async def test_a_retry_may_wait_in_the_outbox(ledger: Ledger, walk: Walk, time: Backend) -> None:
    run = await walk.running()

    await ledger.runs.record([builders.retry(run, 60, route="tasks.medium", waits_in_outbox=True)])

    await time.advance(50)
    assert await walk.relay() == []
    await time.advance(20)
    [row] = await walk.relay()
    assert (row.reference, row.route) == (Reference(run.task_id, 2), "tasks.medium")


async def test_a_postponement_burns_no_attempt(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()

    await ledger.runs.record([builders.retry(run, 0, burns_attempt=False)])

    again = await walk.claim(await walk.task(run.task_id))
    assert (again.dispatch, again.attempt, again.postponements) == (2, 1, 1)


async def test_a_verdict_clears_when_the_task_was_queued(ledger: Ledger, walk: Walk, time: Backend) -> None:
    run = await walk.running()
    await time.advance(1)

    await ledger.runs.record([builders.retry(run, 0)])

    task = await walk.task(run.task_id)
    assert (await walk.claim(task)).queued_at == (task.due_at or task.created_at) != run.queued_at


async def test_an_interrupted_run_is_handed_out_again_and_burns_nothing(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()

    assert await ledger.runs.record([builders.interrupted(run)]) == [Recorded(Status.PENDING)]

    task, [row], letters = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, task.attempt, task.losses) == (Status.PENDING, 2, 1, 0)
    assert (task.errors, letters) == ((), [])
    assert (row.reference, row.route) == (Reference(task.id, 2), "tasks.medium")
    assert [sent.id for sent in await walk.relay()] == [row.id]


async def test_a_dead_task_leaves_a_letter_and_a_notice(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running(tenant="t", kind="sleep")

    answers = await ledger.runs.record([builders.dead(run, "no such user", Reason.TIMEOUT)])

    assert answers == [Recorded(Status.FAILED)]
    task, [row], [letter] = await walk.seen(run.task_id, "t")
    assert (task.status, task.reason, task.dispatch, task.attempt) == (Status.FAILED, Reason.TIMEOUT, 1, 1)
    assert task.finished_at
    assert [(error.message, error.reason) for error in task.errors] == [("no such user", Reason.TIMEOUT)]
    assert (row.reference, row.route, row.status) == (reference(task), "tasks.dlq", OutboxStatus.WAITING)
    assert (letter.task_id, letter.dispatch, letter.reason) == (task.id, 1, Reason.TIMEOUT)
    assert (letter.kind, letter.attempt, letter.losses, letter.replay) == ("sleep", 1, 0, 0)
    assert letter.errors == task.errors
    assert [sent.id for sent in await walk.relay()] == [row.id]
    assert await walk.task(task.id, "t") == task


async def test_the_last_twenty_errors_are_kept(ledger: Ledger, walk: Walk) -> None:
    task = await walk.pending()
    for number in range(23):
        failure = builders.failure(f"no. {number}")
        await ledger.runs.record([builders.retry(await walk.claim(task), 0, failure=failure)])
        task = await walk.task(task.id)

    assert [error.message for error in task.errors] == [f"no. {number}" for number in range(3, 23)]
    assert task.attempt == 24


@pytest.mark.parametrize("number", range(5), ids=["done", "retry", "dead", "cancelled", "interrupted"])
@pytest.mark.parametrize("status", [status for status in Status if status is not Status.IN_PROGRESS])
async def test_a_task_that_does_not_run_takes_no_verdict(
    ledger: Ledger, walk: Walk, status: Status, number: int
) -> None:
    task = await walk.to(status)
    before = await walk.seen(task.id)

    run = as_claimed(task)
    verdicts: list[Verdict] = [
        builders.done(run, '"other"'),
        builders.retry(run),
        builders.dead(run, "other"),
    ]
    verdicts += [builders.cancelled(run), builders.interrupted(run)]

    answers = await ledger.runs.record([verdicts[number]])

    assert answers == [Recorded(None)]
    assert await walk.seen(task.id) == before


@pytest.mark.parametrize("number", range(5), ids=["done", "retry", "dead", "cancelled", "interrupted"])
async def test_a_stale_dispatch_never_writes(ledger: Ledger, walk: Walk, number: int) -> None:
    [stale] = await walk.tries_to_claim(reference(await walk.pending()))
    await ledger.upkeep.rescue(10, LEASE_SECONDS)
    await walk.relay()
    await walk.claim(await walk.task(stale.task_id))
    before = await walk.seen(stale.task_id)

    assert await ledger.runs.record([builders.every_verdict(stale)[number]]) == [Recorded(None)]

    assert await walk.seen(stale.task_id) == before


async def test_a_group_is_answered_in_order(ledger: Ledger, walk: Walk) -> None:
    runs = [await walk.running() for _ in range(4)]
    unknown = builders.run()

    answers = await ledger.runs.record(
        [
            builders.dead(runs[3]),
            builders.done(unknown),
            builders.retry(runs[1]),
            builders.done(runs[2]),
            builders.cancelled(runs[0]),
        ]
    )

    assert [answer.status for answer in answers] == [
        Status.FAILED, None, Status.PENDING, Status.COMPLETED, Status.CANCELLED,
    ]  # fmt: skip


@pytest.mark.parametrize("bad", ["a\x00b", "a\ud800b"], ids=["NUL", "surrogate"])
@pytest.mark.parametrize("verdict", ["done", "retry", "dead"])
async def test_text_that_postgresql_cannot_store_refuses_the_whole_group(
    ledger: Ledger, walk: Walk, verdict: str, bad: str
) -> None:
    good, spoilt = await walk.running(), await walk.running()
    ways: dict[str, Verdict] = {
        "done": builders.done(spoilt, f'"{bad}"'),
        "retry": builders.retry(spoilt, failure=builders.failure(bad)),
        "dead": builders.dead(spoilt, bad),
    }

    with pytest.raises(Refused):
        await ledger.runs.record([builders.done(good), ways[verdict]])

    assert (await walk.task(good.task_id)).status is Status.IN_PROGRESS
    assert (await walk.task(spoilt.task_id)).status is Status.IN_PROGRESS
    assert await ledger.runs.record([builders.done(good)]) == [Recorded(Status.COMPLETED)]
