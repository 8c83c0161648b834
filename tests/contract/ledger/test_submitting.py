"""A task becomes NEW with its outbox row, once per id and once per idempotency key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from storage.errors import Refused
from storage.model import Accepted, Caller, KeyReused, OutboxStatus, Priority, Status, TaskFilter
from tests.support.builders import submission, task_id

if TYPE_CHECKING:
    from pipeline.ports import Ledger
    from storage.model import Submission
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

CALLER = Caller()
CLOSE = timedelta(seconds=10)


async def answers(ledger: Ledger, *submissions: Submission) -> list[tuple[Any, ...]]:
    """What the ledger says of each, without the moment."""
    return [
        (Accepted, answer.task_id, answer.replayed)
        if isinstance(answer, Accepted)
        else (KeyReused, answer.task_id)
        for answer in await ledger.submissions.submit(submissions)
    ]


async def test_a_task_is_new_and_shown_as_it_was_asked_for(ledger: Ledger, time: Backend) -> None:
    asked = submission(
        kind="mail.send",
        kind_version=7,
        name="a name",
        description="ein Satz für später",
        tags=("a", "b c", 'q"\\'),
        priority=Priority.HIGH,
        max_retries=0,
        timeout_seconds=1.5,
        tenant="t",
    )

    await ledger.submissions.submit([asked])
    task = await ledger.tasks.get(Caller("t"), asked.id)

    assert task
    for field in (
        *asked.__struct_fields__[:3],
        "kind_version",
        "name",
        "description",
        "tags",
        "priority",
        "tenant",
    ):
        if field != "payload":
            assert getattr(task, field) == getattr(asked, field)
    assert (task.max_retries, task.timeout_seconds) == (0, 1.5)
    assert (task.status, task.dispatch, task.attempt, task.losses, task.replay) == (Status.NEW, 1, 1, 0, 0)
    assert (task.due_at, task.started_at, task.finished_at, task.reason) == (None, None, None, None)
    assert (task.errors, task.result, task.cancel_requested) == ((), None, False)
    assert abs(task.created_at - await time.now()) < CLOSE


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MOMENT = datetime(2100, 1, 1, tzinfo=UTC)

# One field that a task need not have, and what the ledger shows of it.
ALONE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kind version": ({"kind_version": 7}, {"kind_version": 7}),
    "name": ({"name": "a name"}, {"name": "a name"}),
    "description": ({"description": "later"}, {"description": "later"}),
    "tags": ({"tags": ("a", "b")}, {"tags": ("a", "b")}),
    "priority": ({"priority": Priority.LOW}, {"priority": Priority.LOW}),
    "run at": ({"run_at": MOMENT}, {"due_at": MOMENT}),
    "tenant": ({"tenant": "t"}, {"tenant": "t"}),
}


@pytest.mark.parametrize(("given", "shown"), ALONE.values(), ids=ALONE)
async def test_a_field_that_stands_alone_is_kept(
    ledger: Ledger, given: dict[str, Any], shown: dict[str, Any]
) -> None:
    """Tasks of which a client says little may take a shorter way."""
    asked, neighbour = submission(**given), submission(tenant=given.get("tenant", ""))

    await ledger.submissions.submit([asked])
    await ledger.submissions.submit([neighbour])
    found = await ledger.tasks.get(Caller(asked.tenant), asked.id)
    other = await ledger.tasks.get(Caller(asked.tenant), neighbour.id)

    assert found
    assert other
    assert {name: getattr(found, name) for name in shown} == shown
    assert all(getattr(other, name) != value for name, value in shown.items() if name != "tenant")


async def test_so_are_a_delay_a_key_and_the_trace(walk: Walk, ledger: Ledger, time: Backend) -> None:
    delayed = await walk.new(delay_seconds=60.0)
    keyed = await walk.new(key="k")
    traced = await walk.running(trace_context=TRACE)

    assert delayed.due_at
    assert delayed.due_at > await time.now() + CLOSE
    assert await answers(ledger, submission(key="k")) == [(Accepted, keyed.id, True)]
    assert traced.trace_context == TRACE


@pytest.mark.parametrize("priority", Priority)
async def test_its_outbox_row_goes_to_the_work_queue_of_its_priority(walk: Walk, priority: Priority) -> None:
    task = await walk.new(priority=priority)

    [row] = await walk.rows(task.id)

    assert row.reference == (task.id, 1)
    assert (row.route, row.priority) == (f"tasks.{priority.name.lower()}", priority)
    assert (row.status, row.attempts, row.error) == (OutboxStatus.WAITING, 0, None)
    assert [row.id for row in await walk.relay()] == [row.id]


@pytest.mark.parametrize(
    "payload",
    [
        '{"z": 1.0, "a": [1e400, NaN, 123456789012345678901234567890], "a": 2}',
        '  "\\u0000 \\ud800"\n',
        "[" * 3000 + "]" * 3000,
        '"ä€😀"',
    ],
    ids=["numbers", "escapes", "deep", "unicode"],
)
async def test_the_payload_is_kept_byte_for_byte(walk: Walk, payload: str) -> None:
    task = await walk.pending(payload=payload)

    assert task.payload == payload.encode()
    assert (await walk.claim(task)).payload == payload.encode()


async def test_a_delay_holds_the_row_back(walk: Walk, time: Backend) -> None:
    task = await walk.new(delay_seconds=60.0)
    assert task.due_at
    assert abs(task.due_at - await time.now() - timedelta(seconds=60)) < CLOSE
    assert await walk.relay() == []

    await time.advance(61)

    assert [row.reference for row in await walk.relay()] == [(task.id, 1)]


async def test_so_does_a_moment_to_run_at(walk: Walk, time: Backend) -> None:
    run_at = await time.now() + timedelta(seconds=60)
    task = await walk.new(run_at=run_at)
    assert task.due_at == run_at
    assert await walk.relay() == []

    await time.advance(61)

    assert [row.reference for row in await walk.relay()] == [(task.id, 1)]


async def test_a_moment_in_the_past_is_due_at_once(walk: Walk, time: Backend) -> None:
    await walk.new(run_at=await time.now() - timedelta(days=1))

    assert len(await walk.relay()) == 1


async def test_a_group_is_answered_in_order(ledger: Ledger) -> None:
    group = [submission(id=task_id(age_seconds=age)) for age in (5, 9, 1, 7)]

    assert await answers(ledger, *group) == [(Accepted, one.id, False) for one in group]


async def test_the_same_key_and_body_get_the_first_answer(ledger: Ledger) -> None:
    first = submission(key="k", fingerprint="f")
    await ledger.submissions.submit([first])

    assert await answers(ledger, submission(key="k", fingerprint="f")) == [(Accepted, first.id, True)]
    assert len((await ledger.tasks.find(CALLER, TaskFilter())).tasks) == 1
    assert len(await ledger.outbox.find(CALLER, status=None, before=None, limit=9)) == 1


async def test_the_same_key_with_another_body_is_told_whose_it_is(ledger: Ledger) -> None:
    first = submission(key="k", fingerprint="f")
    await ledger.submissions.submit([first])

    assert await answers(ledger, submission(key="k", fingerprint="g")) == [(KeyReused, first.id)]
    assert len((await ledger.tasks.find(CALLER, TaskFilter())).tasks) == 1


async def test_a_key_within_one_group_goes_to_its_first(ledger: Ledger) -> None:
    first, same, other = (submission(key="k", fingerprint=fingerprint) for fingerprint in ("f", "f", "g"))
    apart = submission(key="l", fingerprint="f")

    assert await answers(ledger, first, same, other, apart) == [
        (Accepted, first.id, False),
        (Accepted, first.id, True),
        (KeyReused, first.id),
        (Accepted, apart.id, False),
    ]
    assert {task.id for task in (await ledger.tasks.find(CALLER, TaskFilter())).tasks} == {first.id, apart.id}


async def test_each_tenant_has_its_own_keys(ledger: Ledger) -> None:
    mine, theirs = submission(key="k", fingerprint="f"), submission(key="k", fingerprint="g", tenant="t")

    assert await answers(ledger, mine, theirs) == [(Accepted, mine.id, False), (Accepted, theirs.id, False)]


@pytest.mark.parametrize("key", [None, "k"])
async def test_the_same_submission_again_is_accepted_once(
    ledger: Ledger, walk: Walk, key: str | None
) -> None:
    asked = submission(key=key, fingerprint="f")
    expected = [(Accepted, asked.id, False)]

    assert await answers(ledger, asked) == expected
    assert await answers(ledger, asked) == expected
    assert len(await walk.rows(asked.id)) == 1

    await walk.relay()
    assert await answers(ledger, asked) == expected
    assert await walk.rows(asked.id) == []


@pytest.mark.parametrize("bad", ["a\x00b", "a\ud800b"], ids=["NUL", "surrogate"])
@pytest.mark.parametrize(
    "field", ["kind", "payload", "name", "description", "tags", "tenant", "trace_context", "key"]
)
async def test_text_that_postgresql_cannot_store_refuses_the_whole_group(
    ledger: Ledger, field: str, bad: str
) -> None:
    good, spoilt = submission(), submission(**{field: (bad,) if field == "tags" else bad})

    with pytest.raises(Refused):
        await ledger.submissions.submit([good, spoilt])

    assert await ledger.tasks.get(CALLER, good.id) is None
    assert await ledger.outbox.find(CALLER, status=None, before=None, limit=9) == []
