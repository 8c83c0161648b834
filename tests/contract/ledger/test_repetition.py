"""After a lost reply the same call is made again: nothing may happen twice."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import pytest
from msgspec.structs import replace

from storage.model import Accepted, Caller, KeyReused, OutboxStatus, Priority, Reference, Rescued, Status
from tests.contract.ledger.walk import KINDS, LEASE_SECONDS, reference
from tests.support import builders

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pipeline.ports import Ledger
    from storage.model import Verdict
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

Answer = TypeVar("Answer")

CALLER = Caller()


async def twice(call: Callable[[], Awaitable[Answer]]) -> tuple[Answer, Answer]:
    return await call(), await call()


async def test_submit(ledger: Ledger, walk: Walk) -> None:
    first, keyed = builders.submission(), builders.submission(key="k", fingerprint="f")
    same, other = (builders.submission(key="k", fingerprint=fingerprint) for fingerprint in "fg")

    first_answer, second_answer = await twice(lambda: ledger.submissions.submit([first, keyed, same, other]))

    assert first_answer == second_answer
    assert [answer.task_id for answer in first_answer] == [first.id, keyed.id, keyed.id, keyed.id]
    assert isinstance(first_answer[1], Accepted)
    assert isinstance(first_answer[3], KeyReused)
    assert {row.task_id for row in await walk.relay()} == {first.id, keyed.id}


async def test_cancel(ledger: Ledger, walk: Walk) -> None:
    waiting, run = await walk.pending(), await walk.running()

    first, second = await twice(lambda: ledger.tasks.cancel(CALLER, waiting.id))
    assert first == second
    first, second = await twice(lambda: ledger.tasks.cancel(CALLER, run.task_id))
    assert first == second


async def test_replay(ledger: Ledger, walk: Walk) -> None:
    task = await walk.failed()

    first, second = await twice(lambda: ledger.tasks.replay(CALLER, task.id, 1, "again"))

    assert first
    assert first == second
    assert (first.dispatch, first.replay) == (2, 1)
    assert len(await walk.rows(task.id)) == 1


async def test_replay_repeated_when_the_task_has_moved_on(ledger: Ledger, walk: Walk) -> None:
    task = await walk.failed()
    await ledger.tasks.replay(CALLER, task.id, 1, "again")
    await walk.relay()
    await walk.ended(builders.dead(await walk.claim(await walk.task(task.id))))
    before = await walk.seen(task.id)

    assert await ledger.tasks.replay(CALLER, task.id, 1, "again") == before.task

    assert await walk.seen(task.id) == before


async def test_poll(ledger: Ledger, walk: Walk) -> None:
    await walk.new()

    first, second = await twice(lambda: ledger.outbox.poll(10, LEASE_SECONDS))

    assert (len(first), len(second)) == (1, 0)


async def test_settle(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)

    await twice(lambda: ledger.outbox.settle([(row.id, 0.0)]))

    assert (await walk.task(task.id)).status is Status.PENDING
    assert await walk.rows(task.id) == []


async def test_settle_repeated_when_the_task_has_moved_on(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)
    await ledger.outbox.settle([(row.id, 0.0)])
    await ledger.runs.record([builders.interrupted(await walk.claim(task))])
    before = await walk.seen(task.id)

    await ledger.outbox.settle([(row.id, 0.0)])

    assert await walk.seen(task.id) == before


async def test_release_of_rows(ledger: Ledger, walk: Walk) -> None:
    await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)

    await twice(lambda: ledger.outbox.release([row.id], 0.0))

    [again] = await ledger.outbox.poll(10, LEASE_SECONDS)
    assert (again.id, again.attempts) == (row.id, 0)


async def test_returned(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)

    await twice(lambda: ledger.outbox.returned([row.id], "no queue", 2, 0.0))

    [kept] = await walk.rows(task.id)
    assert (kept.attempts, kept.status) == (1, OutboxStatus.WAITING)
    assert (await walk.task(task.id)).status is Status.NEW


async def test_returned_after_the_last_attempt(ledger: Ledger, walk: Walk) -> None:
    task = await walk.new()
    [row] = await ledger.outbox.poll(10, LEASE_SECONDS)
    await ledger.outbox.returned([row.id], "no queue", 1, 0.0)
    before = await walk.seen(task.id)

    await ledger.outbox.returned([row.id], "no queue", 1, 0.0)

    assert await walk.seen(task.id) == before
    assert len(before.dead_letters) == 1


async def test_retry_of_a_row(ledger: Ledger, walk: Walk) -> None:
    task = await walk.undeliverable()
    [*_, row] = await walk.rows(task.id)

    await twice(lambda: ledger.outbox.retry(CALLER, row.id))

    after = await walk.task(task.id)
    assert (after.status, after.dispatch, after.replay) == (Status.NEW, 2, 1)
    assert [sent.reference for sent in await walk.relay()].count(Reference(task.id, 2)) == 1


async def test_claim(ledger: Ledger, walk: Walk) -> None:
    known, unknown = await walk.pending(), await walk.pending(kind="later")
    group = [reference(known), reference(unknown)]

    [first], [second] = await twice(lambda: ledger.runs.claim(group, walk.worker_id, KINDS))

    assert first.task_id == known.id
    assert replace(second, waited_seconds=first.waited_seconds) == first
    assert {row.reference for row in await walk.rows(unknown.id)} == {reference(unknown)}


async def test_claim_repeated_when_time_has_passed(ledger: Ledger, walk: Walk, time: Backend) -> None:
    run = await walk.running()
    before = await walk.seen(run.task_id)

    await time.advance(60)
    [again] = await ledger.runs.claim([run.reference], walk.worker_id, KINDS)

    # Nobody repeats a claim but for its answer: the handler starts only now, and so does its time.
    after = await walk.seen(run.task_id)
    assert before.task.started_at
    assert after.task.started_at
    assert await time.now() - after.task.started_at < timedelta(seconds=5)
    assert again.waited_seconds == pytest.approx(run.waited_seconds + 60, abs=5)


async def test_record(ledger: Ledger, walk: Walk) -> None:
    runs = [await walk.running() for _ in range(5)]
    verdicts = [builders.every_verdict(run)[number] for number, run in enumerate(runs)]
    first = await ledger.runs.record(verdicts)
    before = [await walk.seen(run.task_id) for run in runs]

    second = await ledger.runs.record(verdicts)

    assert [answer.status for answer in first] == [
        Status.COMPLETED, Status.PENDING, Status.FAILED, Status.CANCELLED, Status.PENDING,
    ]  # fmt: skip
    assert second == first
    assert [await walk.seen(run.task_id) for run in runs] == before


async def test_record_where_a_cancel_was_asked(ledger: Ledger, walk: Walk) -> None:
    runs = [await walk.running() for _ in range(5)]
    for run in runs:
        await ledger.tasks.cancel(CALLER, run.task_id)
    verdicts = [builders.every_verdict(run)[number] for number, run in enumerate(runs)]

    first, second = await twice(lambda: ledger.runs.record(verdicts))

    assert [answer.status for answer in first] == [Status.COMPLETED] + [Status.CANCELLED] * 4
    assert second == first


async def test_record_of_some_that_are_known_and_some_that_are_not(ledger: Ledger, walk: Walk) -> None:
    known, fresh = await walk.running(), await walk.running()
    await ledger.runs.record([builders.retry(known)])

    answers = await ledger.runs.record(
        [builders.done(builders.run()), builders.done(fresh), builders.retry(known)]
    )

    assert [answer.status for answer in answers] == [None, Status.COMPLETED, Status.PENDING]


async def test_record_repeated_when_the_task_has_moved_on(ledger: Ledger, walk: Walk) -> None:
    runs = [await walk.running(), await walk.running()]
    verdicts: list[Verdict] = [builders.retry(runs[0], 0), builders.interrupted(runs[1])]
    await ledger.runs.record(verdicts)
    for run in runs:
        await walk.ended(builders.dead(await walk.claim(await walk.task(run.task_id)), "later"))
    before = [await walk.seen(run.task_id) for run in runs]

    answers = await ledger.runs.record(verdicts)

    assert [answer.status for answer in answers] == [Status.PENDING, Status.PENDING]
    assert [await walk.seen(run.task_id) for run in runs] == before


@pytest.mark.parametrize("number", range(5), ids=["done", "retry", "dead", "cancelled", "interrupted"])
async def test_record_of_what_a_replay_has_begun_anew(ledger: Ledger, walk: Walk, number: int) -> None:
    run = await walk.running()
    await walk.ended(builders.dead(run, "first"))
    await ledger.tasks.replay(CALLER, run.task_id, 1, "again")
    before = await walk.seen(run.task_id)

    [answer] = await ledger.runs.record([builders.every_verdict(run)[number]])

    assert answer.status is None
    assert await walk.seen(run.task_id) == before


async def test_hand_back(ledger: Ledger, walk: Walk) -> None:
    task = await walk.pending()

    await twice(lambda: ledger.runs.hand_back([reference(task)], 0.0))

    assert {row.reference for row in await walk.relay()} == {reference(task)}
    assert len(await walk.tries_to_claim(reference(task))) == 1
    assert await walk.tries_to_claim(reference(task)) == []


async def test_release_of_runs(ledger: Ledger, walk: Walk) -> None:
    run = await walk.running()
    await ledger.runs.release([run.reference], walk.worker_id)
    before = await walk.seen(run.task_id)

    await ledger.runs.release([run.reference], walk.worker_id)

    assert await walk.seen(run.task_id) == before


async def test_beat_and_close(ledger: Ledger) -> None:
    beat = builders.beat()
    assert await twice(lambda: ledger.workers.beat(beat)) == (True, True)
    assert (await ledger.outbox.capacity())[Priority.HIGH].workers == 1

    await twice(lambda: ledger.workers.close(beat.worker_id))

    assert (await ledger.outbox.capacity())[Priority.HIGH].workers == 0


async def test_declare_dead(ledger: Ledger, time: Backend) -> None:
    beat = builders.beat()
    await ledger.workers.beat(beat)
    await time.advance(LEASE_SECONDS + 5)

    assert await twice(lambda: ledger.workers.declare_dead(LEASE_SECONDS)) == ([beat.worker_id], [])


async def test_rescue(ledger: Ledger, walk: Walk) -> None:
    task = await walk.pending()
    await walk.tries_to_claim(reference(task))
    once = [Rescued(reference(task), Status.PENDING)]

    assert await twice(lambda: ledger.upkeep.rescue(10, LEASE_SECONDS)) == (once, [])

    assert (await walk.task(task.id)).losses == 1
    assert len(await walk.rows(task.id)) == 1


async def test_resend(ledger: Ledger, walk: Walk, time: Backend) -> None:
    task = await walk.pending()
    await time.advance(60)

    assert await twice(lambda: ledger.upkeep.resend(Priority.MEDIUM, None, 10)) == (1, 0)

    assert len(await walk.rows(task.id)) == 1


async def test_prune(ledger: Ledger, walk: Walk, time: Backend) -> None:
    await walk.cancelled(id=builders.task_id(age_seconds=7200))
    kept = await walk.pending()
    await time.advance(3600)

    assert await twice(lambda: ledger.upkeep.prune(60.0, 60.0, 10)) == (1, 0)

    assert (await walk.task(kept.id)).status is Status.PENDING


async def test_restart_volatile(ledger: Ledger, walk: Walk) -> None:
    await walk.pending()
    run = await walk.running()

    assert await twice(ledger.upkeep.restart_volatile) == (2, 0)

    assert (await walk.task(run.task_id)).losses == 1
    assert len(await walk.relay()) == 2


async def test_bury(ledger: Ledger, walk: Walk) -> None:
    failed, waiting = await walk.failed(), await walk.pending()
    before = await walk.seen(failed.id)

    await twice(lambda: ledger.dead_letters.bury([reference(failed), reference(waiting)]))

    assert await walk.seen(failed.id) == before
    assert {row.reference for row in await walk.relay()} == {reference(waiting)}
    assert len(await walk.tries_to_claim(reference(waiting))) == 1
    assert await walk.tries_to_claim(reference(waiting)) == []
