"""NEW to PENDING, and what becomes of a row: leased, settled, given back, or given up."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from storage.errors import Refused
from storage.model import Caller, Capacity, OutboxStatus, Priority, Reason, Reference, Status
from tests.contract.ledger.walk import LEASE_SECONDS, reference
from tests.support import builders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.ports import Ledger
    from storage.model import OutboxRow
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

CALLER = Caller()
HIGH, MEDIUM, LOW = Priority
CLOSE = timedelta(seconds=10)


async def fill(walk: Walk, counts: Mapping[Priority, int]) -> None:
    await walk.submit(
        *(builders.submission(priority=priority) for priority, count in counts.items() for _ in range(count))
    )


async def polled(ledger: Ledger, most: int) -> dict[Priority, int]:
    rows = await ledger.outbox.poll(most, LEASE_SECONDS)
    return {priority: sum(row.priority is priority for row in rows) for priority in Priority}


async def only_row(walk: Walk) -> OutboxRow:
    [row] = await walk.ledger.outbox.find(CALLER, status=None, before=None, limit=9)
    return row


async def test_a_leased_row_is_nobody_elses_until_the_lease_is_over(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    task = await walk.new()
    [leased] = await ledger.outbox.poll(10, LEASE_SECONDS)
    assert leased.reference == reference(task)
    await time.advance(LEASE_SECONDS - 5)
    assert await ledger.outbox.poll(10, LEASE_SECONDS) == []

    await time.advance(10)

    assert [row.id for row in await ledger.outbox.poll(10, LEASE_SECONDS)] == [leased.id]


async def test_a_lease_that_is_renewed_begins_anew(ledger: Ledger, walk: Walk, time: Backend) -> None:
    await walk.new()
    [leased] = await ledger.outbox.poll(10, LEASE_SECONDS)
    for _ in range(3):
        await time.advance(LEASE_SECONDS - 5)
        await ledger.outbox.renew([leased.id], LEASE_SECONDS)
    await time.advance(LEASE_SECONDS - 5)
    assert await ledger.outbox.poll(10, LEASE_SECONDS) == []

    await time.advance(10)

    assert [row.id for row in await ledger.outbox.poll(10, LEASE_SECONDS)] == [leased.id]


async def test_a_row_without_a_lease_gets_none_by_a_renewal(ledger: Ledger, walk: Walk) -> None:
    never = await walk.new()
    [row] = await walk.rows(never.id)
    await ledger.outbox.renew([row.id], LEASE_SECONDS)
    [leased] = await ledger.outbox.poll(10, LEASE_SECONDS)
    await ledger.outbox.release([leased.id], 0.0)

    await ledger.outbox.renew([leased.id], LEASE_SECONDS)

    assert [again.id for again in await ledger.outbox.poll(10, LEASE_SECONDS)] == [leased.id]


async def test_what_was_settled_meanwhile_is_not_renewed(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    [row] = await walk.relay()

    await ledger.outbox.renew([row.id], LEASE_SECONDS)

    assert await walk.rows(task.id) == []


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10])
async def test_a_poll_never_takes_more_than_asked(ledger: Ledger, walk: Walk, most: int) -> None:
    await fill(walk, {HIGH: 12, MEDIUM: 12, LOW: 12})

    assert len(await ledger.outbox.poll(most, LEASE_SECONDS)) == most


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({HIGH: 20, MEDIUM: 20, LOW: 20}, {HIGH: 6, MEDIUM: 3, LOW: 1}),
        ({HIGH: 2, MEDIUM: 0, LOW: 20}, {HIGH: 2, MEDIUM: 0, LOW: 8}),
        ({HIGH: 2, MEDIUM: 20, LOW: 20}, {HIGH: 2, MEDIUM: 7, LOW: 1}),
        ({HIGH: 20, MEDIUM: 1, LOW: 0}, {HIGH: 9, MEDIUM: 1, LOW: 0}),
        ({HIGH: 20, MEDIUM: 0, LOW: 20}, {HIGH: 9, MEDIUM: 0, LOW: 1}),
        ({HIGH: 1, MEDIUM: 1, LOW: 1}, {HIGH: 1, MEDIUM: 1, LOW: 1}),
    ],
)
async def test_each_priority_has_a_reserved_share_and_the_rest_goes_to_the_highest(
    ledger: Ledger, walk: Walk, counts: Mapping[Priority, int], expected: Mapping[Priority, int]
) -> None:
    await fill(walk, counts)

    assert await polled(ledger, 10) == expected


@pytest.mark.parametrize(
    ("most", "expected"), [(3, (2, 1, 0)), (15, (9, 5, 1)), (25, (15, 8, 2)), (100, (40, 40, 20))]
)
async def test_shares_are_rounded_up_from_the_highest_down(
    ledger: Ledger, walk: Walk, most: int, expected: tuple[int, int, int]
) -> None:
    await fill(walk, dict.fromkeys(Priority, 40))

    assert tuple((await polled(ledger, most)).values()) == expected


async def test_within_a_priority_what_is_due_longest_goes_first(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    later = await walk.new(delay_seconds=20.0)
    sooner = await walk.new(delay_seconds=10.0)
    await time.advance(30)

    assert [row.task_id for row in await ledger.outbox.poll(1, LEASE_SECONDS)] == [sooner.id]
    assert [row.task_id for row in await ledger.outbox.poll(1, LEASE_SECONDS)] == [later.id]


async def test_rows_of_a_paused_queue_stay(ledger: Ledger, walk: Walk, time: Backend) -> None:
    await fill(walk, {HIGH: 3, MEDIUM: 3, LOW: 3})
    await time.pause("tasks.high")
    assert await polled(ledger, 10) == {HIGH: 0, MEDIUM: 3, LOW: 3}

    await time.resume("tasks.high")

    assert await polled(ledger, 10) == {HIGH: 3, MEDIUM: 0, LOW: 0}


async def test_so_do_the_retries_of_its_tasks_but_not_the_notices_of_dead_ones(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    retried, dead = [await walk.running(priority=HIGH) for _ in range(2)]
    await time.pause("tasks.high")
    await ledger.runs.record([builders.retry(retried), builders.dead(dead)])
    await fill(walk, {HIGH: 3})

    assert [(row.reference, row.route) for row in await walk.relay()] == [(dead.reference, "tasks.dlq")]

    await time.resume("tasks.high")
    assert [row.route for row in await walk.relay()] == ["tasks.high.retry.30s"] + ["tasks.high"] * 3


async def test_the_notices_of_a_paused_queue_take_their_share(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    dead = [await walk.running(priority=HIGH) for _ in range(8)]
    await time.pause("tasks.high")
    await ledger.runs.record([builders.dead(run) for run in dead])
    await fill(walk, {HIGH: 9, MEDIUM: 9, LOW: 9})

    assert await polled(ledger, 10) == {HIGH: 6, MEDIUM: 3, LOW: 1}
    assert await polled(ledger, 10) == {HIGH: 2, MEDIUM: 6, LOW: 2}


async def test_a_confirmed_row_leaves_and_its_new_task_is_pending(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    task = await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)

    await ledger.outbox.settle([(row.id, 0.0)])

    after = await walk.seen(task.id)
    assert (after.task.status, after.task.dispatch, after.rows) == (Status.PENDING, 1, [])
    queued_at = (await walk.claim(after.task)).queued_at
    assert queued_at
    assert abs(queued_at - await time.now()) < CLOSE


async def test_queued_counts_from_when_its_queue_lets_it_go(walk: Walk, time: Backend) -> None:
    task = await walk.pending(hold_seconds=120.0)
    await time.advance(150)

    run = await walk.claim(task)

    assert run.queued_at
    assert abs(await time.now() - run.queued_at - timedelta(seconds=30)) < CLOSE


async def test_what_is_claimed_early_tells_of_no_time_to_come(walk: Walk, time: Backend) -> None:
    """By it the janitor takes all that was queued earlier for overtaken."""
    run = await walk.claim(await walk.pending(hold_seconds=120.0))

    assert run.queued_at
    assert abs(run.queued_at - await time.now()) < CLOSE


async def test_the_mark_of_a_pending_task_is_renewed(ledger: Ledger, walk: Walk, time: Backend) -> None:
    task = await walk.pending()
    await time.advance(100)
    await ledger.runs.hand_back([reference(task)], 0.0)
    await walk.relay()

    run = await walk.claim(task)

    assert run.queued_at
    assert abs(run.queued_at - await time.now()) < CLOSE


async def test_a_message_may_overtake_the_mark(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)
    run = await walk.claim(task)
    before = await walk.task(task.id)

    await ledger.outbox.settle([(row.id, 0.0)])

    assert await walk.seen(task.id) == (before, [], [])
    assert run.queued_at == task.created_at
    assert (await walk.claim(task)).queued_at == task.created_at


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_the_mark_moves_no_task_that_has_ended(ledger: Ledger, walk: Walk, status: Status) -> None:
    task = await walk.pending()
    await ledger.runs.hand_back([reference(task)], 0.0)
    [row] = await walk.rows(task.id)
    run = await walk.claim(task)
    await ledger.runs.record([builders.ending(run, status)])
    before = await walk.task(task.id)
    assert before.status is status

    await ledger.outbox.settle([(row.id, 0.0)])

    assert await walk.task(task.id) == before


async def test_the_row_of_an_earlier_dispatch_marks_nothing(ledger: Ledger, walk: Walk) -> None:
    cancelled = await walk.cancelled()
    await ledger.tasks.replay(CALLER, cancelled.id, 1, "again")
    [row] = await walk.rows(cancelled.id)
    await ledger.tasks.cancel(CALLER, cancelled.id)
    await ledger.tasks.replay(CALLER, cancelled.id, 2, "and again")

    await ledger.outbox.settle([(row.id, 0.0)])

    task = await walk.task(cancelled.id)
    assert (task.status, task.dispatch) == (Status.NEW, 3)


async def test_rows_that_are_gone_settle_without_complaint(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    [row] = await walk.rows(task.id)

    await ledger.outbox.settle([(row.id + 1000, 0.0), (row.id, 0.0)])

    assert (await walk.task(task.id)).status is Status.PENDING


async def test_a_row_given_back_costs_no_attempt_and_is_due_after_the_delay(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)

    await ledger.outbox.release([row.id], 60.0)

    await time.advance(50)
    assert await ledger.outbox.poll(10, LEASE_SECONDS) == []
    await time.advance(20)
    [again] = await ledger.outbox.poll(10, LEASE_SECONDS)
    assert (again.id, again.attempts) == (row.id, 0)


async def test_a_returned_row_is_counted_and_tried_again_after_the_delay(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    task = await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)

    assert await ledger.outbox.returned([row.id], "no queue tasks.medium", 2, 60.0) == []

    assert (await walk.task(task.id)).status is Status.NEW
    kept = await only_row(walk)
    assert (kept.attempts, kept.error, kept.status) == (1, "no queue tasks.medium", OutboxStatus.WAITING)
    await time.advance(50)
    assert await ledger.outbox.poll(10, LEASE_SECONDS) == []
    await time.advance(20)
    assert [again.id for again in await ledger.outbox.poll(10, LEASE_SECONDS)] == [row.id]


@pytest.mark.parametrize("status", [Status.NEW, Status.PENDING])
async def test_after_the_last_attempt_row_and_waiting_task_are_failed(
    ledger: Ledger, walk: Walk, status: Status
) -> None:
    task = await walk.to(status)
    if status is Status.PENDING:
        await ledger.runs.hand_back([reference(task)], 0.0)
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)

    assert await ledger.outbox.returned([row.id], "no queue", 1, 0.0) == [row.id]

    after = await walk.seen(task.id)
    assert (after.task.status, after.task.reason) == (Status.FAILED, Reason.UNDELIVERABLE)
    assert after.task.finished_at
    [letter] = after.dead_letters
    assert (letter.reason, letter.dispatch) == (Reason.UNDELIVERABLE, 1)
    assert row.id not in [left.id for left in await walk.relay()]
    [kept] = [kept for kept in after.rows if kept.id == row.id]
    assert (kept.status, kept.attempts, kept.error) == (OutboxStatus.FAILED, 1, "no queue")


@pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_a_row_given_up_fails_no_task_that_is_past_waiting(
    ledger: Ledger, walk: Walk, status: Status
) -> None:
    task = await walk.pending()
    await ledger.runs.hand_back([reference(task)], 0.0)
    row = await walk.leased(task.id)
    run = await walk.claim(task)
    if status is not Status.IN_PROGRESS:
        await ledger.runs.record([builders.ending(run, status)])
    before = await walk.seen(task.id)

    assert await ledger.outbox.returned([row.id], "no queue", 1, 0.0) == [row.id]

    after = await walk.seen(task.id)
    assert (after.task, after.dead_letters) == (before.task, before.dead_letters)


async def test_a_row_given_up_fails_no_task_of_a_later_dispatch(ledger: Ledger, walk: Walk) -> None:
    task = await walk.pending()
    await ledger.runs.hand_back([reference(task)], 0.0)
    row = await walk.leased(task.id)
    await ledger.runs.record([builders.interrupted(await walk.claim(task))])

    assert await ledger.outbox.returned([row.id], "no queue", 1, 0.0) == [row.id]

    assert (await walk.task(task.id)).status is Status.PENDING


@pytest.mark.parametrize("bad", ["a\x00b", "a\ud800b"], ids=["NUL", "surrogate"])
async def test_an_error_that_postgresql_cannot_store_counts_nothing(
    ledger: Ledger, walk: Walk, bad: str
) -> None:
    await walk.leased((await walk.new()).id)
    row = await only_row(walk)

    with pytest.raises(Refused):
        await ledger.outbox.returned([row.id], bad, 1, 0.0)

    assert await only_row(walk) == row


async def test_rows_of_one_task_that_fail_together_leave_one_dead_letter(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    await ledger.runs.hand_back([reference(task)], 0.0)
    rows = await ledger.outbox.poll(10, LEASE_SECONDS)

    failed = await ledger.outbox.returned([row.id for row in rows], "no queue", 1, 0.0)

    assert sorted(failed) == sorted(row.id for row in rows)
    assert len((await walk.seen(task.id)).dead_letters) == 1


async def test_retrying_the_row_of_an_undeliverable_task_replays_it(ledger: Ledger, walk: Walk) -> None:
    task = await walk.undeliverable()
    row = (await walk.rows(task.id))[-1]

    retried = await ledger.outbox.retry(CALLER, row.id)

    assert retried
    assert (retried.id, retried.reference) == (row.id, Reference(task.id, 2))
    assert (retried.status, retried.attempts, retried.error) == (OutboxStatus.WAITING, 0, None)
    after = await walk.task(task.id)
    assert (after.status, after.dispatch, after.replay) == (Status.NEW, 2, 1)
    assert (after.attempt, after.reason, after.errors, after.finished_at) == (1, None, (), None)
    assert Reference(task.id, 2) in [sent.reference for sent in await walk.relay()]
    await walk.claim(await walk.task(task.id))


async def test_a_replay_does_not_go_by_the_route_that_failed(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()
    await ledger.runs.record([builders.retry(run, route="tasks.medium.retry.99999s")])
    row = await walk.leased(run.task_id)
    await ledger.outbox.returned([row.id], "no such route", 1, 0.0)

    retried = await ledger.outbox.retry(CALLER, row.id)

    assert retried
    assert (retried.route, retried.dispatch) == ("tasks.medium", 3)


async def test_retrying_any_other_row_only_sends_it_again(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()
    await ledger.runs.record([builders.dead(run)])
    notice = await walk.leased(run.task_id)
    await ledger.outbox.returned([notice.id], "no queue", 1, 0.0)
    before = await walk.task(run.task_id)

    retried = await ledger.outbox.retry(CALLER, notice.id)

    assert retried
    assert (retried.route, retried.dispatch, retried.attempts) == ("tasks.dlq", 1, 0)
    assert retried.status is OutboxStatus.WAITING
    assert await walk.task(run.task_id) == before


async def test_only_failed_rows_of_the_callers_tasks_are_retried(ledger: Ledger, walk: Walk) -> None:
    waiting = (await walk.rows((await walk.new()).id))[0]
    theirs = (await walk.rows((await walk.undeliverable(tenant="t")).id, "t"))[-1]

    assert await ledger.outbox.retry(CALLER, waiting.id) is None
    assert await ledger.outbox.retry(CALLER, theirs.id) is None
    assert await ledger.outbox.retry(CALLER, theirs.id + 1000) is None
    assert await ledger.outbox.retry(Caller("t"), theirs.id)


async def test_rows_are_listed_by_status_newest_first_page_by_page(ledger: Ledger, walk: Walk) -> None:
    failed = (await walk.rows((await walk.undeliverable()).id))[-1]
    await walk.relay()
    rows = [(await walk.rows((await walk.new()).id))[0] for _ in range(4)]
    await walk.new(tenant="t")
    newest_first = [row.id for row in (*rows[::-1], failed)]

    async def listed(status: OutboxStatus | None, before: int | None = None, limit: int = 9) -> list[int]:
        found = await ledger.outbox.find(CALLER, status=status, before=before, limit=limit)
        return [row.id for row in found]

    assert await listed(None) == newest_first
    assert await listed(OutboxStatus.FAILED) == [failed.id]
    assert await listed(OutboxStatus.WAITING) == newest_first[:-1]
    assert await listed(None, limit=2) == newest_first[:2]
    assert await listed(None, before=newest_first[1], limit=2) == newest_first[2:4]
    assert await listed(OutboxStatus.WAITING, before=newest_first[3]) == []


async def test_capacity_counts_live_workers_by_queue(ledger: Ledger, time: Backend) -> None:
    await ledger.workers.beat(builders.beat(free=5))
    await time.advance(60)
    assert len(await ledger.workers.declare_dead(30.0)) == 1
    await ledger.workers.beat(builders.beat(free=3, queues=("tasks.high",)))
    await ledger.workers.beat(builders.beat(free=2, queues=("tasks.high", "tasks.low")))

    assert await ledger.outbox.capacity() == {
        HIGH: Capacity(2, 5),
        MEDIUM: Capacity(0, 0),
        LOW: Capacity(1, 2),
    }
