"""What clients see of their tasks, and how they cancel and replay them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from storage.errors import Refused
from storage.model import Caller, OutboxStatus, Priority, Reference, Status, TaskFilter, TaskPage
from tests.contract.ledger.walk import reference
from tests.support import builders

if TYPE_CHECKING:
    from uuid import UUID

    from pipeline.ports import Ledger
    from storage.model import Task
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

CALLER = Caller()
STRANGER = Caller("t")


async def listed(ledger: Ledger, **fields: Any) -> list[UUID]:
    return [task.id for task in (await ledger.tasks.find(CALLER, TaskFilter(**fields))).tasks]


async def pages(ledger: Ledger, **fields: Any) -> list[list[UUID]]:
    """The pages of a list, from the first to the one that no other follows."""
    found, before = [], None
    while True:
        page = await ledger.tasks.find(CALLER, TaskFilter(before=before, **fields))
        found.append([task.id for task in page.tasks])
        before = page.next
        if before is None:
            return found


async def test_a_list_shows_all_but_payload_and_result(ledger: Ledger, walk: Walk) -> None:
    task = await walk.completed(name="n", tags=("a",))
    assert (task.payload, task.result) == (b'{"n": 1}', b"null")

    [row] = (await ledger.tasks.find(CALLER, TaskFilter())).tasks

    assert (row.payload, row.result) == (None, None)
    for field in row.__struct_fields__:
        if field not in ("payload", "result"):
            assert getattr(row, field) == getattr(task, field)


async def test_tasks_are_listed_newest_first_page_by_page(ledger: Ledger, walk: Walk) -> None:
    ids = [builders.task_id(age_seconds=100 - number) for number in range(5)]
    await walk.submit(*(builders.submission(id=ids[number]) for number in (3, 0, 4, 2, 1)))
    newest_first = ids[::-1]

    assert await listed(ledger) == newest_first
    assert await listed(ledger, limit=2) == newest_first[:2]
    assert await listed(ledger, limit=2, before=newest_first[1]) == newest_first[2:4]
    assert await listed(ledger, limit=2, before=newest_first[3]) == newest_first[4:]
    assert await listed(ledger, before=newest_first[4]) == []
    assert await pages(ledger, limit=2) == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert await pages(ledger, limit=5) == [newest_first]


async def test_a_page_ends_where_it_has_looked_at_enough(ledger: Ledger, walk: Walk) -> None:
    first = await walk.new(priority=Priority.LOW)
    rest = [await walk.new(priority=Priority.MEDIUM) for _ in range(4)]
    last = await walk.new(priority=Priority.LOW)

    found = await pages(ledger, priority=Priority.LOW, scan_rows=2)

    assert found == [[last.id], [], [first.id], []]
    assert await pages(ledger, priority=Priority.LOW, scan_rows=7) == [[last.id, first.id]]
    assert await pages(ledger, limit=1, scan_rows=4) == [[task.id] for task in (last, *rest[::-1], first)]


@pytest.mark.parametrize(
    "rare", [{"kind": "sleep"}, {"tag": "x"}, {"status": Status.FAILED}], ids=["kind", "tag", "status"]
)
async def test_a_rare_task_is_found_without_a_look_at_the_others(
    ledger: Ledger, walk: Walk, rare: dict[str, Any]
) -> None:
    failed = await walk.failed(kind="sleep", tags=("x", "y"))
    for _ in range(4):
        await walk.new(tags=("y",))

    assert await pages(ledger, **rare, scan_rows=2) == [[failed.id]]
    assert await pages(ledger, **rare, priority=Priority.MEDIUM, scan_rows=2) == [[failed.id]]
    assert await pages(ledger, **rare, priority=Priority.HIGH, scan_rows=2) == [[]]
    assert await listed(ledger, **rare, before=failed.id) == []


@pytest.mark.parametrize(
    "which",
    [{"kind": "sleep"}, {"tag": "x"}, {"status": Status.FAILED}, {"priority": Priority.HIGH}],
    ids=lambda which: next(iter(which)),
)
async def test_pages_of_whatever_length_show_each_task_once(
    ledger: Ledger, walk: Walk, which: dict[str, Any]
) -> None:
    tasks = []
    for number in range(7):
        kind, priority = ("sleep", Priority.HIGH) if number % 3 else ("echo", Priority.LOW)
        tasks.append(await walk.failed(kind=kind, tags=("x",) if number % 3 else (), priority=priority))
    wanted = [
        task.id
        for task in reversed(tasks)
        if all(value in (getattr(task, name, None), *task.tags) for name, value in which.items())
    ]

    for scan_rows in (1, 2, 3, 100):
        for limit in (1, 2, 100):
            found = await pages(ledger, **which, limit=limit, scan_rows=scan_rows)
            assert [task_id for page in found for task_id in page] == wanted
            assert all(len(page) <= limit for page in found)


@pytest.mark.parametrize("status", Status)
async def test_tasks_are_filtered_by_status(ledger: Ledger, walk: Walk, status: Status) -> None:
    tasks = [await walk.to(one) for one in Status if one is not Status.NEW]
    tasks.append(await walk.to(Status.NEW))

    assert await listed(ledger, status=status) == [task.id for task in tasks if task.status is status]


async def test_tasks_are_filtered_by_what_they_are(ledger: Ledger, walk: Walk) -> None:
    high = await walk.new(priority=Priority.HIGH, tags=("x",))
    sleep = await walk.new(kind="sleep", tags=("x", "y"))

    assert await listed(ledger, priority=Priority.HIGH) == [high.id]
    assert await listed(ledger, kind="sleep") == [sleep.id]
    assert await listed(ledger, tag="y") == [sleep.id]
    assert await listed(ledger, tag="x") == [sleep.id, high.id]
    assert await listed(ledger, tag="x", kind="echo", priority=Priority.HIGH, status=Status.NEW) == [high.id]
    assert await listed(ledger, tag="z") == []
    assert await listed(ledger, kind="echo", status=Status.NEW) == [high.id]
    assert await listed(ledger, kind="echo", status=Status.COMPLETED) == []
    assert await listed(ledger, kind="sleep", before=sleep.id) == []


async def test_tasks_are_filtered_by_when_they_came(ledger: Ledger, walk: Walk, time: Backend) -> None:
    early = await walk.new(id=builders.task_id(age_seconds=60))
    await time.advance(60)
    between = await time.now() - timedelta(seconds=30)
    late = await walk.new()

    assert await listed(ledger, created_from=between) == [late.id]
    assert await listed(ledger, created_to=between) == [early.id]
    assert await listed(ledger, created_from=late.created_at) == [late.id]
    assert await listed(ledger, created_to=late.created_at) == [early.id]


async def test_a_task_is_found_by_when_it_came_whatever_its_id_says(ledger: Ledger, walk: Walk) -> None:
    late = await walk.new(id=builders.task_id(age_seconds=50))
    ahead = await walk.new(id=builders.task_id(age_seconds=-3))

    after = ahead.created_at + timedelta(milliseconds=1)

    assert await listed(ledger, created_from=late.created_at, created_to=after) == [ahead.id, late.id]
    assert await listed(ledger, created_from=after) == []
    assert await listed(ledger, created_to=late.created_at) == []


async def test_a_tag_given_twice_is_kept_twice_and_listed_once(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new(tags=("x", "y", "x"))

    assert task.tags == ("x", "y", "x")
    assert await listed(ledger, tag="x") == [task.id]


async def test_nobody_sees_or_moves_the_tasks_of_another_tenant(ledger: Ledger, walk: Walk) -> None:
    failed = await walk.failed()
    mine = await walk.new()

    assert await ledger.tasks.get(STRANGER, mine.id) is None
    assert await ledger.tasks.find(STRANGER, TaskFilter()) == TaskPage([])
    assert await ledger.tasks.cancel(STRANGER, mine.id) is None
    assert await ledger.tasks.replay(STRANGER, failed.id, failed.dispatch, "mine?") is None
    assert await walk.task(mine.id) == mine
    assert await walk.task(failed.id) == failed


async def test_an_unknown_task_is_none(ledger: Ledger) -> None:
    unknown = builders.task_id()

    assert await ledger.tasks.get(CALLER, unknown) is None
    assert await ledger.tasks.cancel(CALLER, unknown) is None
    assert await ledger.tasks.replay(CALLER, unknown, 1, "again") is None


async def test_statuses_are_read_for_many_with_their_tenants(ledger: Ledger, walk: Walk) -> None:
    done, new = await walk.completed(), await walk.new(tenant="t")

    statuses = await ledger.tasks.statuses([done.id, builders.task_id(), new.id])

    assert statuses == {done.id: ("", Status.COMPLETED), new.id: ("t", Status.NEW)}
    assert await ledger.tasks.statuses([]) == {}


async def test_of_many_tasks_those_that_have_ended_are_read_whole(ledger: Ledger, walk: Walk) -> None:
    completed = await walk.completed()
    ends = [completed, await walk.cancelled(), await walk.failed()]
    new, pending, running = await walk.new(), await walk.pending(), await walk.running()
    ids = [builders.task_id(), *(each.id for each in ends), new.id, pending.id, running.task_id]

    ended = await ledger.tasks.ended(ids, 10)

    assert ended == {each.id: await ledger.tasks.get(CALLER, each.id) for each in ends}
    assert (ended[completed.id].payload, ended[completed.id].result) == (b'{"n": 1}', b"null")
    assert len(await ledger.tasks.ended(ids, 2)) == 2
    assert await ledger.tasks.ended([], 10) == {}


@pytest.mark.parametrize("status", [Status.NEW, Status.PENDING])
async def test_what_waits_is_cancelled_and_its_reference_refused(
    ledger: Ledger, walk: Walk, status: Status
) -> None:
    task = await walk.to(status)

    answer = await ledger.tasks.cancel(CALLER, task.id)

    assert answer
    assert (answer.status, answer.dispatch, answer.cancel_requested) == (
        Status.CANCELLED,
        task.dispatch,
        True,
    )
    assert answer.finished_at
    assert await walk.task(task.id) == answer
    assert await walk.tries_to_claim(reference(task)) == []
    await walk.relay()
    assert await walk.task(task.id) == answer


async def test_a_running_task_is_asked_to_stop(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()

    answer = await ledger.tasks.cancel(CALLER, run.task_id)

    assert answer
    assert (answer.status, answer.dispatch, answer.cancel_requested) == (Status.IN_PROGRESS, 1, True)
    assert answer.finished_at is None
    assert [holding.cancel_requested for holding in await ledger.workers.held_by(walk.worker_id)] == [True]


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_what_has_ended_is_returned_unchanged(ledger: Ledger, walk: Walk, status: Status) -> None:
    task = await walk.to(status)

    assert await ledger.tasks.cancel(CALLER, task.id) == task
    assert await walk.task(task.id) == task


async def worn(walk: Walk, status: Status) -> Task:
    """A task that has ended with something in every field that a replay clears."""
    run = await walk.running(delay_seconds=0.0)
    await walk.ledger.runs.record([builders.retry(run, 0)])
    await walk.relay()
    run = await walk.claim(await walk.task(run.task_id))
    if status is Status.CANCELLED:
        await walk.ledger.tasks.cancel(CALLER, run.task_id)
    return await walk.ended(builders.dead(run))


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
async def test_a_replay_starts_afresh_under_the_next_dispatch(
    ledger: Ledger, walk: Walk, status: Status
) -> None:
    task = await worn(walk, status)
    assert (task.status, task.dispatch, task.attempt) == (status, 2, 2)
    letters = (await walk.seen(task.id)).dead_letters

    answer = await ledger.tasks.replay(CALLER, task.id, 2, "try again")

    after, [row], kept = await walk.seen(task.id)
    assert answer == after
    assert (after.status, after.dispatch, after.replay, after.attempt) == (Status.NEW, 3, 1, 1)
    assert (after.losses, after.errors, after.reason, after.result) == (0, (), None, None)
    assert (after.cancel_requested, after.started_at, after.finished_at) == (False, None, None)
    assert (row.reference, row.route) == (Reference(task.id, 3), "tasks.medium")
    assert kept == letters
    await walk.relay()
    run = await walk.claim(await walk.task(task.id))
    assert (run.dispatch, run.replay, run.attempt, run.postponements) == (3, 1, 1, 0)


@pytest.mark.parametrize("status", [Status.NEW, Status.PENDING, Status.IN_PROGRESS, Status.COMPLETED])
async def test_only_failed_and_cancelled_tasks_are_replayed(
    ledger: Ledger, walk: Walk, status: Status
) -> None:
    task = await walk.to(status)
    before = await walk.seen(task.id)

    assert await ledger.tasks.replay(CALLER, task.id, task.dispatch, "again") is None

    assert await walk.seen(task.id) == before


@pytest.mark.parametrize("dispatch", [0, 2])
async def test_a_replay_names_the_dispatch_it_replays(ledger: Ledger, walk: Walk, dispatch: int) -> None:
    task = await walk.failed()
    before = await walk.seen(task.id)

    assert await ledger.tasks.replay(CALLER, task.id, dispatch, "again") is None

    assert await walk.seen(task.id) == before


async def test_an_older_replay_is_no_longer_answered(ledger: Ledger, walk: Walk) -> None:
    task = await walk.failed()
    for dispatch in (1, 2):
        await ledger.tasks.replay(CALLER, task.id, dispatch, "again")
        await ledger.tasks.cancel(CALLER, task.id)

    assert await ledger.tasks.replay(CALLER, task.id, 1, "again") is None
    assert await ledger.tasks.replay(CALLER, task.id, 2, "again") == await walk.task(task.id)


async def test_a_replay_takes_the_failed_rows_of_the_task_away(ledger: Ledger, walk: Walk) -> None:
    task, other = await walk.undeliverable(), await walk.undeliverable()
    theirs = await walk.rows(other.id)
    [notice, failed] = await walk.rows(task.id)
    assert (notice.route, failed.status) == ("tasks.dlq", OutboxStatus.FAILED)

    await ledger.tasks.replay(CALLER, task.id, task.dispatch, "queue is back")

    [row, kept] = await walk.rows(task.id)
    assert (row.reference, kept) == (Reference(task.id, 2), notice)
    assert await walk.rows(other.id) == theirs


@pytest.mark.parametrize("bad", ["a\x00b", "a\ud800b"], ids=["NUL", "surrogate"])
async def test_a_reason_that_postgresql_cannot_store_replays_nothing(
    ledger: Ledger, walk: Walk, bad: str
) -> None:
    task = await walk.failed()

    with pytest.raises(Refused):
        await ledger.tasks.replay(CALLER, task.id, task.dispatch, bad)

    assert await walk.task(task.id) == task
