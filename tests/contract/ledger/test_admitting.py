"""What the gateway asks before it takes a task: how many wait, and whether this one was taken before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from storage.model import Accepted, KeyReused, Priority, Status
from tests.support.builders import retry, submission

if TYPE_CHECKING:
    from uuid import UUID

    from pipeline.ports import Ledger
    from storage.model import Submission
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend


async def test_what_waits_is_due_in_the_outbox_or_at_the_broker(ledger: Ledger, walk: Walk) -> None:
    assert await ledger.submissions.waiting(100) == 0
    for priority in Priority:
        await walk.pending(priority=priority)
        await walk.new(priority=priority)

    assert await ledger.submissions.waiting(100) == 6


async def test_what_runs_or_has_ended_does_not_wait(ledger: Ledger, walk: Walk) -> None:
    for status in (Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        await walk.to(status)

    assert await ledger.submissions.waiting(100) == 0


async def test_what_is_not_due_does_not_wait_until_it_is(ledger: Ledger, time: Backend, walk: Walk) -> None:
    await walk.new(delay_seconds=60.0)
    await walk.pending(hold_seconds=60.0)
    await ledger.runs.record([retry(await walk.running(), 60, waits_in_outbox=True)])
    assert await ledger.submissions.waiting(100) == 0

    await time.advance(61.0)
    assert await ledger.submissions.waiting(100) == 3


async def test_it_is_counted_no_further_than_asked(ledger: Ledger, walk: Walk) -> None:
    for _ in range(3):
        await walk.pending()
        await walk.new(priority=Priority.HIGH)

    assert [await ledger.submissions.waiting(most) for most in (1, 4, 6, 7)] == [1, 4, 6, 6]


async def test_a_repeat_is_known_by_its_key(ledger: Ledger, walk: Walk) -> None:
    first = submission(key="k", fingerprint="f")
    await walk.submit(first, submission())

    answers = await ledger.submissions.repeated(
        [
            submission(key="k", fingerprint="f"),
            submission(key="k", fingerprint="other"),
            submission(key="new", fingerprint="f"),
            submission(key="k", fingerprint="f", tenant="t"),
        ]
    )

    assert [_named(answer) for answer in answers] == [(first.id, True), first.id, None, None]


async def test_a_repeated_batch_is_answered_task_by_task(ledger: Ledger, walk: Walk) -> None:
    first, repeat, new = _batch("k"), _batch("k"), _batch("new")
    await walk.submit(*first)

    answers = await ledger.submissions.repeated([*new, *repeat])

    assert [_named(answer) for answer in answers] == [None] * 3 + [(each.id, True) for each in first]


async def test_asking_for_repeats_writes_nothing(ledger: Ledger) -> None:
    asked = submission(key="k", fingerprint="f")
    await ledger.submissions.repeated([asked])

    assert await ledger.submissions.repeated([asked]) == [None]
    assert await ledger.submissions.waiting(100) == 0


def _batch(key: str) -> list[Submission]:
    first = submission(key=key, fingerprint="f")
    others = [submission(key=key, fingerprint="f") for _ in range(2)]
    return [first, *(replace(each, batch=first.id) for each in others)]


def _named(answer: Accepted | KeyReused | None) -> tuple[UUID, bool] | UUID | None:
    if isinstance(answer, Accepted):
        return answer.task_id, answer.replayed
    return answer.task_id if isinstance(answer, KeyReused) else None
