"""What a client sends harms at most itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from storage.errors import Refused
from storage.group_commit import GroupCommit
from storage.ledger import PostgresLedger
from storage.model import Accepted, Caller, Reference, Status, TaskFilter
from tests.support.builders import beat, done, submission
from tests.support.ledgers import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage.database import Address

CALLER = Caller()


@pytest_asyncio.fixture
async def ledger(ledger_database: Address) -> AsyncIterator[PostgresLedger]:
    async with PostgresLedger(ledger_database, pool_size=2) as ledger:
        yield ledger


@pytest.mark.parametrize(
    "payload", ["[" * 500 + "]" * 500, '{"a":' * 500 + "1e999" + "}" * 500, "NaN", '"\\u0000"', "1" * 4000]
)
async def test_any_json_text_is_listed_read_claimed_and_completed(
    ledger: PostgresLedger, payload: str
) -> None:
    one = submission(payload=payload)
    await ledger.submissions.submit([one])

    [listed] = (await ledger.tasks.find(CALLER, TaskFilter())).tasks
    assert listed.id == one.id
    [run] = await ledger.runs.claim([Reference(one.id, 1)], beat().worker_id, ["echo"])
    assert run.payload == payload.encode()
    await ledger.runs.record([done(run, payload)])
    task = await ledger.tasks.get(CALLER, one.id)
    assert task
    assert (task.payload, task.result, task.status) == (payload.encode(), payload.encode(), Status.COMPLETED)


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime(9999, 12, 31, 23, tzinfo=UTC)])
async def test_the_first_and_the_last_moment_are_listed(ledger: PostgresLedger, moment: datetime) -> None:
    await ledger.submissions.submit([submission(run_at=moment)])
    [listed] = (await ledger.tasks.find(CALLER, TaskFilter())).tasks
    assert listed.due_at == moment


WHOLE = """SELECT count(*)::int FROM tasks t
           JOIN payloads p ON p.task_id = t.id JOIN outbox o ON o.task_id = t.id"""

POISON: list[dict[str, Any]] = [
    {"name": "a\0b"},
    {"description": "a\ud800b"},
    {"payload": '"\0"'},
    {"tags": ("fine", "a\ud800b")},
    {"max_retries": 2**31},
    {"timeout_seconds": "soon"},
    {"delay_seconds": float("nan")},
    {"priority": 4},
]


@pytest.mark.parametrize("poison", POISON, ids=[next(iter(each)) for each in POISON])
async def test_one_poisoned_submission_of_a_hundred_is_refused_alone(
    ledger: PostgresLedger, ledger_database: Address, poison: dict[str, Any]
) -> None:
    group = [submission(**(poison if number == 37 else {})) for number in range(100)]
    commit = GroupCommit(ledger.submissions.submit)

    answers = await asyncio.gather(*(commit.add(one) for one in group), return_exceptions=True)

    refused = [number for number, answer in enumerate(answers) if isinstance(answer, Refused)]
    accepted = {answer.task_id for answer in answers if isinstance(answer, Accepted)}
    assert (refused, len(accepted)) == ([37], 99)
    async with connected(ledger_database) as database:
        assert await database.fetch(WHOLE) == [(99,)]
    await commit.close(grace_seconds=1.0)
