"""What a broker has lost is sent again, what is over is removed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from storage.model import Accepted, Backlog, Caller, Due, Priority, Reason, Reference, Status
from tests.contract.ledger.walk import LEASE_SECONDS, reference
from tests.support import builders

if TYPE_CHECKING:
    from pipeline.ports import Ledger
    from storage.model import Task
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

CALLER = Caller()
CLOSE = timedelta(seconds=10)
MEDIUM = Priority.MEDIUM
HOUR = 3600.0


async def test_a_reference_the_broker_lost_is_sent_again_as_it_was(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    task = await walk.pending()
    await time.advance(60)
    task = await walk.task(task.id)

    assert await ledger.upkeep.resend(MEDIUM, None, 10) == 1

    after, [row], _ = await walk.seen(task.id)
    assert after == task
    assert (row.reference, row.route, row.attempts) == (reference(task), "tasks.medium", 0)
    assert [sent.id for sent in await walk.relay()] == [row.id]
    assert (await walk.claim(task)).dispatch == 1


async def test_only_what_was_queued_before_then_is_sent_again(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    overtaken = await walk.pending()
    await time.advance(60)
    between = await time.now() - timedelta(seconds=30)
    later = await walk.pending()
    await walk.pending(hold_seconds=HOUR)

    assert await ledger.upkeep.resend(MEDIUM, between, 10) == 1
    assert len(await walk.rows(overtaken.id)) == 1

    await time.advance(60)
    assert await ledger.upkeep.resend(MEDIUM, None, 10) == 1
    assert len(await walk.rows(later.id)) == 1


async def test_what_a_retry_queue_still_holds_is_not_sent_again_however_late_the_mark(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    run = await walk.running()
    await ledger.runs.record([builders.retry(run, 60)])
    await walk.relay(hold_seconds=60.0)

    assert await ledger.upkeep.resend(MEDIUM, await time.now() + timedelta(seconds=HOUR), 10) == 0

    await time.advance(61)
    assert await ledger.upkeep.resend(MEDIUM, await time.now() + timedelta(seconds=HOUR), 10) == 1


async def test_what_is_sent_again_is_due_no_sooner_than_its_task(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    """Its mark may be older than it: a retry that was sent to the work queue by mistake, say."""
    run = await walk.running()
    await ledger.runs.record([builders.retry(run, 60)])
    await walk.relay()
    await time.advance(10)

    assert await ledger.upkeep.resend(MEDIUM, None, 10) == 1

    assert await walk.relay() == []
    await time.advance(51)
    assert [row.reference for row in await walk.relay()] == [Reference(run.task_id, 2)]


async def test_a_task_that_an_outbox_row_stands_for_is_not_lost(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    task = await walk.pending()
    await ledger.runs.hand_back([reference(task)], 0.0)
    await time.advance(60)

    assert await ledger.upkeep.resend(MEDIUM, None, 10) == 0
    assert len(await walk.rows(task.id)) == 1


async def with_a_row_of_an_earlier_dispatch(walk: Walk) -> Task:
    """A task whose second dispatch the broker holds, while the row of its first is due in an hour."""
    task = await walk.new(delay_seconds=HOUR)
    await walk.ledger.tasks.cancel(CALLER, task.id)
    await walk.ledger.tasks.replay(CALLER, task.id, 1, "again")
    await walk.relay()
    task = await walk.task(task.id)
    assert [row.dispatch for row in await walk.rows(task.id)] == [1]
    return task


async def test_a_row_of_an_earlier_dispatch_stands_for_nothing(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    task = await with_a_row_of_an_earlier_dispatch(walk)
    await time.advance(60)

    assert await ledger.upkeep.resend(MEDIUM, None, 10) == 1

    assert [row.reference for row in await walk.relay()] == [reference(task)]


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PENDING])
async def test_nothing_but_pending_tasks_is_sent_again(
    ledger: Ledger, walk: Walk, time: Backend, status: Status
) -> None:
    task = await walk.to(status)
    before = await walk.rows(task.id)
    await time.advance(60)

    assert await ledger.upkeep.resend(MEDIUM, None, 10) == 0
    assert len(await walk.rows(task.id)) == len(before)


async def test_another_priority_is_not_sent_again(ledger: Ledger, walk: Walk, time: Backend) -> None:
    await walk.pending(priority=Priority.LOW)
    await time.advance(60)

    assert await ledger.upkeep.resend(MEDIUM, None, 10) == 0


async def test_sending_again_is_bounded_and_begins_with_the_oldest(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    tasks = []
    for _ in range(3):
        tasks.append(await walk.pending())
        await time.advance(10)

    assert await ledger.upkeep.resend(MEDIUM, None, 2) == 2
    assert {row.task_id for row in await walk.relay()} == {tasks[0].id, tasks[1].id}


async def test_old_tasks_that_have_ended_are_removed_with_all_that_hangs_on_them(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    ended = [
        await walk.to(status, id=builders.task_id(age_seconds=3 * HOUR))
        for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
    ]
    undeliverable = await walk.undeliverable(id=builders.task_id(age_seconds=3 * HOUR))
    await walk.relay()
    [row] = await walk.rows(undeliverable.id)
    await time.advance(2 * HOUR)
    kept = await walk.new()

    assert await ledger.upkeep.prune(HOUR, HOUR, 10) == 4

    for task in (*ended, undeliverable):
        assert await ledger.tasks.get(CALLER, task.id) is None
    assert await ledger.dead_letters.find(CALLER, task_id=None, kind=None, before=None, limit=9) == []
    assert await ledger.outbox.retry(CALLER, row.id) is None
    assert [sent.reference for sent in await walk.relay()] == [reference(kept)]


async def test_what_has_not_ended_or_not_long_ago_is_kept(ledger: Ledger, walk: Walk, time: Backend) -> None:
    old = {"id": builders.task_id(age_seconds=3 * HOUR)}
    running = await walk.running(**old)
    pending = await walk.pending(id=builders.task_id(age_seconds=3 * HOUR))
    new = await walk.new(id=builders.task_id(age_seconds=3 * HOUR))
    await time.advance(2 * HOUR)
    ended = await walk.completed(id=builders.task_id(age_seconds=3 * HOUR))

    assert await ledger.upkeep.prune(HOUR, HOUR, 10) == 0

    for task_id in (running.task_id, pending.id, new.id, ended.id):
        assert await ledger.tasks.get(CALLER, task_id)


async def test_without_a_retention_tasks_are_kept(ledger: Ledger, walk: Walk, time: Backend) -> None:
    task = await walk.completed(id=builders.task_id(age_seconds=3 * HOUR))
    await time.advance(2 * HOUR)

    assert await ledger.upkeep.prune(0.0, HOUR, 10) == 0
    assert await ledger.tasks.get(CALLER, task.id)


async def test_removing_is_bounded(ledger: Ledger, walk: Walk, time: Backend) -> None:
    for _ in range(3):
        await walk.cancelled(id=builders.task_id(age_seconds=3 * HOUR))
    await time.advance(2 * HOUR)

    assert [await ledger.upkeep.prune(HOUR, HOUR, 2) for _ in range(3)] == [2, 1, 0]


async def test_an_idempotency_key_is_forgotten_after_its_time(ledger: Ledger, time: Backend) -> None:
    first = builders.submission(key="k", fingerprint="f")
    await ledger.submissions.submit([first])
    await time.advance(HOUR)
    second = builders.submission(key="k", fingerprint="f")

    async def answer() -> bool:
        [accepted] = await ledger.submissions.submit([second])
        assert isinstance(accepted, Accepted)
        return accepted.replayed

    assert await ledger.upkeep.prune(HOUR * 9, HOUR * 2, 10) == 0
    assert await answer()
    assert await ledger.upkeep.prune(HOUR * 9, HOUR / 2, 10) == 1
    assert not await answer()


async def test_expired_keys_are_removed_also_without_a_retention(ledger: Ledger, time: Backend) -> None:
    await ledger.submissions.submit([builders.submission(key=key, fingerprint="f") for key in "abc"])
    await time.advance(HOUR)
    assert [await ledger.upkeep.prune(0.0, HOUR / 2, 2) for _ in range(3)] == [2, 1, 0]


async def test_an_unreadable_message_is_kept_for_the_retention(ledger: Ledger, time: Backend) -> None:
    for _ in range(3):
        await ledger.dead_letters.bury_undecodable(b"\xff", {}, "no JSON")
    await time.advance(HOUR)
    assert await ledger.upkeep.prune(0.0, HOUR * 9, 10) == 0
    assert await ledger.upkeep.prune(HOUR * 2, HOUR * 9, 10) == 0
    assert [await ledger.upkeep.prune(HOUR / 2, HOUR * 9, 2) for _ in range(3)] == [2, 1, 0]


async def test_a_volatile_broker_gets_all_that_waits_again(ledger: Ledger, walk: Walk, time: Backend) -> None:
    waiting = await walk.pending()
    run = await walk.running()
    await ledger.runs.record([builders.retry(run, 300)])
    await walk.relay()
    assert await walk.rows(run.task_id) == []

    assert await ledger.upkeep.restart_volatile() == 2

    assert [row.reference for row in await walk.relay()] == [reference(waiting)]
    [held] = await walk.rows(run.task_id)
    assert (held.reference, held.route) == (Reference(run.task_id, 2), "tasks.medium")
    assert held.available_at
    assert abs(held.available_at - await time.now() - timedelta(seconds=300)) < CLOSE
    await time.advance(310)
    assert [row.reference for row in await walk.relay()] == [Reference(run.task_id, 2)]


async def test_its_restart_does_not_wait_for_the_row_of_an_earlier_dispatch(
    ledger: Ledger, walk: Walk
) -> None:
    task = await with_a_row_of_an_earlier_dispatch(walk)

    assert await ledger.upkeep.restart_volatile() == 1

    assert [row.reference for row in await walk.relay()] == [reference(task)]


async def test_its_restart_frees_leased_rows(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    assert len(await ledger.outbox.poll(10, HOUR)) == 1

    assert await ledger.upkeep.restart_volatile() == 0

    assert [row.reference for row in await ledger.outbox.poll(10, HOUR)] == [reference(task)]


async def test_its_restart_rescues_the_runs_of_the_boot_before(ledger: Ledger, walk: Walk) -> None:
    run, asked = await walk.running(), await walk.running()
    await ledger.tasks.cancel(CALLER, asked.task_id)

    assert await ledger.upkeep.restart_volatile() == 2

    task, [row], _ = await walk.seen(run.task_id)
    assert (task.status, task.dispatch, task.losses) == (Status.PENDING, 2, 1)
    assert (row.reference, row.route) == (Reference(task.id, 2), "tasks.medium")
    assert (await walk.task(asked.task_id)).status is Status.CANCELLED
    assert not await ledger.workers.beat(builders.beat(walk.worker_id))


async def test_its_restart_leaves_alone_what_has_ended(ledger: Ledger, walk: Walk) -> None:
    tasks = [await walk.to(status) for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)]

    assert await ledger.upkeep.restart_volatile() == 0

    assert await walk.relay() == []
    assert [await walk.task(task.id) for task in tasks] == tasks


async def test_a_failed_task_in_the_dlq_has_its_letter_already(ledger: Ledger, walk: Walk) -> None:
    task = await walk.failed()
    before = await walk.seen(task.id)

    assert await ledger.dead_letters.bury([reference(task)]) == 0

    assert await walk.seen(task.id) == before
    assert len(before.dead_letters) == 1


@pytest.mark.parametrize("status", [Status.NEW, Status.PENDING])
async def test_a_waiting_task_in_the_dlq_is_sent_again_as_it_was(
    ledger: Ledger, walk: Walk, status: Status
) -> None:
    task = await walk.to(status)
    earlier = await walk.rows(task.id)

    assert await ledger.dead_letters.bury([reference(task)]) == 1

    after = await walk.seen(task.id)
    assert (after.task, after.dead_letters) == (task, [])
    [row] = [row for row in after.rows if row not in earlier]
    assert (row.reference, row.route) == (reference(task), "tasks.medium")


@pytest.mark.parametrize("case", ["running", "completed", "cancelled", "stale", "later", "unknown"])
async def test_anything_else_in_the_dlq_is_forgotten(ledger: Ledger, walk: Walk, case: str) -> None:
    ways = {"completed": Status.COMPLETED, "cancelled": Status.CANCELLED, "running": Status.IN_PROGRESS}
    task = await walk.to(ways.get(case, Status.PENDING))
    found = {"stale": Reference(task.id, 0), "later": Reference(task.id, 2), "unknown": Reference(uuid4(), 1)}
    before = await walk.seen(task.id)

    assert await ledger.dead_letters.bury([found.get(case, reference(task))]) == 0

    assert await walk.seen(task.id) == before


async def test_a_packed_message_in_the_dlq_is_judged_reference_by_reference(
    ledger: Ledger, walk: Walk
) -> None:
    failed, waiting, running = await walk.failed(), await walk.pending(), await walk.running()

    assert await ledger.dead_letters.bury([reference(failed), reference(waiting), running.reference]) == 1

    assert [row.reference for row in await walk.relay()] == [reference(waiting)]


async def test_a_message_that_nobody_can_read_is_kept(ledger: Ledger) -> None:
    body = bytes(range(256)) * 300

    await ledger.dead_letters.bury_undecodable(body, {"x-death": [{"count": 1}], "raw": b"\xff"}, "no JSON")

    [row] = await ledger.dead_letters.find(CALLER, task_id=None, kind=None, before=None, limit=9)
    assert (row.task_id, row.dispatch, row.kind, row.body, row.headers) == (None, None, None, None, None)
    assert "no JSON" in row.reason
    letter = await ledger.dead_letters.get(CALLER, row.id)
    assert letter
    assert letter.body == body[: 64 * 1024]
    assert letter.headers
    assert '"count":1' in letter.headers
    assert await ledger.dead_letters.get(Caller("t"), row.id) is None


async def test_dead_letters_are_listed_newest_first_page_by_page(ledger: Ledger, walk: Walk) -> None:
    tasks = [await walk.failed(kind=kind) for kind in ("echo", "sleep", "echo", "echo")]
    await walk.failed(tenant="t")

    async def listed(kind: str | None = None, before: int | None = None, limit: int = 9) -> dict[int, object]:
        found = await ledger.dead_letters.find(CALLER, task_id=None, kind=kind, before=before, limit=limit)
        return {letter.id: letter.task_id for letter in found}

    everything = await listed()
    assert list(everything.values()) == [task.id for task in tasks[::-1]]
    assert sorted(everything, reverse=True) == list(everything)
    assert list((await listed(kind="sleep")).values()) == [tasks[1].id]
    assert list(await listed(limit=2)) == list(everything)[:2]
    assert list(await listed(before=list(everything)[1], limit=1)) == list(everything)[2:3]
    assert list((await listed("echo", before=list(everything)[1])).values()) == [tasks[0].id]


async def test_the_letters_of_one_task_are_found_and_read(ledger: Ledger, walk: Walk) -> None:
    task = await walk.failed()
    await walk.failed()
    await ledger.tasks.replay(CALLER, task.id, 1, "again")
    await walk.relay()
    await walk.ended(builders.dead(await walk.claim(await walk.task(task.id)), "again", Reason.TIMEOUT))

    found = await ledger.dead_letters.find(CALLER, task_id=task.id, kind=None, before=None, limit=9)

    assert [(letter.dispatch, letter.replay, letter.reason) for letter in found] == [
        (2, 1, Reason.TIMEOUT),
        (1, 0, Reason.ERROR),
    ]
    assert [error.message for error in found[0].errors] == ["again"]
    assert await ledger.dead_letters.get(CALLER, found[1].id) == found[1]
    assert await ledger.dead_letters.get(Caller("t"), found[1].id) is None
    assert await ledger.dead_letters.get(CALLER, found[0].id + 1000) is None


async def test_a_worker_long_dead_still_has_its_runs_rescued_after_pruning(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    run = await walk.running()
    await time.advance(LEASE_SECONDS + 5)
    await ledger.workers.declare_dead(LEASE_SECONDS)
    await time.advance(48 * HOUR)

    await ledger.upkeep.prune(HOUR, HOUR, 10)

    assert len(await ledger.upkeep.rescue(10, LEASE_SECONDS)) == 1
    assert (await walk.task(run.task_id)).losses == 1


async def test_the_backlog_is_what_is_due_and_how_long_it_has_been(
    ledger: Ledger, walk: Walk, time: Backend
) -> None:
    await walk.undeliverable()
    await walk.relay()  # its notice to the DLQ
    await walk.new(priority=Priority.HIGH)
    await time.advance(60)
    await walk.new(priority=Priority.HIGH)
    await walk.new(priority=Priority.LOW, delay_seconds=HOUR)

    backlog = await ledger.upkeep.backlog(10)

    assert [backlog.due[priority].rows for priority in Priority] == [2, 0, 0]
    assert backlog.due[Priority.HIGH].oldest_seconds == pytest.approx(60.0, abs=CLOSE.total_seconds())
    assert backlog.due[MEDIUM].oldest_seconds == 0.0
    assert backlog.failed == 1


async def test_the_backlog_is_counted_no_further_than_asked(ledger: Ledger, walk: Walk) -> None:
    for _ in range(3):
        await walk.new()
        await walk.undeliverable()

    backlog = await ledger.upkeep.backlog(2)

    assert (backlog.due[MEDIUM].rows, backlog.failed) == (2, 2)


async def test_an_empty_outbox_has_no_backlog(ledger: Ledger) -> None:
    nothing = Backlog({priority: Due(0, 0.0) for priority in Priority}, failed=0)
    assert await ledger.upkeep.backlog(10) == nothing
