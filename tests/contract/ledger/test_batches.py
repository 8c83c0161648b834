"""The tasks of one batch are written together or not at all, and their key belongs to all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from storage.errors import Refused
from storage.model import Accepted, Caller, TaskFilter
from tests.support.builders import submission, task_id

if TYPE_CHECKING:
    from pipeline.ports import Ledger
    from storage.model import Submission
    from tests.contract.ledger.walk import Walk

CALLER = Caller()


def batch(size: int, **fields: Any) -> list[Submission]:
    """Tasks of one request; the ids fall, so that their order is not that of the request."""
    tasks = [submission(id=task_id(age_seconds=place), **fields) for place in range(size)]
    return [tasks[0], *(replace(task, batch=tasks[0].id) for task in tasks[1:])]


async def answers(ledger: Ledger, *submissions: Submission) -> list[tuple[Any, ...]]:
    return [
        ("accepted", answer.task_id, answer.replayed)
        if isinstance(answer, Accepted)
        else ("reused", answer.task_id)
        for answer in await ledger.submissions.submit(submissions)
    ]


async def count(ledger: Ledger) -> int:
    return len((await ledger.tasks.find(CALLER, TaskFilter(limit=100))).tasks)


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_batch_is_answered_in_its_order(ledger: Ledger, walk: Walk, key: str | None) -> None:
    mine = batch(4, key=key, fingerprint="f")

    assert await answers(ledger, *mine) == [("accepted", task.id, False) for task in mine]

    assert {row.task_id for row in await walk.relay()} == {task.id for task in mine}


@pytest.mark.parametrize("key", [None, "k"])
async def test_the_same_batch_again_is_accepted_once(ledger: Ledger, walk: Walk, key: str | None) -> None:
    mine = batch(3, key=key, fingerprint="f")
    first = await ledger.submissions.submit(mine)

    assert await ledger.submissions.submit(mine) == first
    assert await count(ledger) == 3
    assert len(await walk.relay()) == 3


async def test_the_same_key_and_body_get_the_first_tasks_in_order(ledger: Ledger) -> None:
    first, again = ([task for key in "zka" for task in batch(30, key=key, fingerprint="f")] for _ in range(2))
    await ledger.submissions.submit(first)

    assert await answers(ledger, *again) == [("accepted", task.id, True) for task in first]
    assert await count(ledger) == 90


async def test_the_same_key_with_another_body_writes_none_of_the_batch(ledger: Ledger) -> None:
    first, other = batch(3, key="k", fingerprint="f"), batch(4, key="k", fingerprint="g")
    await ledger.submissions.submit(first)

    assert await answers(ledger, *other) == [("reused", first[0].id)] * 4
    assert await count(ledger) == 3


async def test_a_key_of_a_single_task_is_none_for_a_batch_nor_the_other_way_round(ledger: Ledger) -> None:
    one, many = submission(key="one", fingerprint="f"), batch(2, key="many", fingerprint="g")
    await ledger.submissions.submit([one, *many])

    assert await answers(
        ledger, *batch(2, key="one", fingerprint="g"), submission(key="many", fingerprint="f")
    ) == [("reused", one.id), ("reused", one.id), ("reused", many[0].id)]
    assert await count(ledger) == 3


async def test_of_two_batches_with_one_key_in_a_group_the_first_is_taken(ledger: Ledger) -> None:
    first, same, other = (batch(2, key="k", fingerprint=fingerprint) for fingerprint in "ffg")
    apart = batch(2)

    assert await answers(ledger, *apart, *first, *same, *other) == [
        *(("accepted", task.id, False) for task in (*apart, *first)),
        *(("accepted", task.id, True) for task in first),
        *[("reused", first[0].id)] * 2,
    ]
    assert await count(ledger) == 4


async def test_what_cannot_be_stored_refuses_the_group_whole(ledger: Ledger) -> None:
    good, *rest = batch(3)

    with pytest.raises(Refused):
        await ledger.submissions.submit([good, replace(rest[0], name="a\x00b"), rest[1]])

    assert await count(ledger) == 0
    assert await ledger.outbox.find(CALLER, status=None, before=None, limit=9) == []


async def test_tasks_are_found_by_their_ids(ledger: Ledger) -> None:
    mine = batch(3, tenant="t")
    await ledger.submissions.submit([*mine, submission()])
    ids = [task.id for task in mine]
    listed = await ledger.tasks.find(Caller("t"), TaskFilter())

    assert await ledger.tasks.get_many(Caller("t"), ids) == {task.id: task for task in listed.tasks}
    assert (await ledger.tasks.get_many(Caller("t"), [task_id(), ids[0]])).keys() == {ids[0]}
    assert await ledger.tasks.get_many(CALLER, ids) == {}
    assert await ledger.tasks.get_many(Caller("t"), []) == {}
