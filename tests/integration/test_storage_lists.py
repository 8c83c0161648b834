"""What PostgreSQL keeps for lists, beside the tasks themselves."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest_asyncio

from storage.ledger import PostgresLedger
from storage.model import Caller, TaskFilter
from tests.support.builders import submission, task_id
from tests.support.ledgers import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage.database import Address

CALLER = Caller()
DAY = 86_400.0


@pytest_asyncio.fixture
async def ledger(ledger_database: Address) -> AsyncIterator[PostgresLedger]:
    async with PostgresLedger(ledger_database) as opened:
        yield opened


async def test_the_tags_of_a_task_go_with_it(ledger: PostgresLedger, ledger_database: Address) -> None:
    old = [
        submission(id=task_id(age_seconds=3 * DAY), tags=("x", "y", "x"), tenant=name) for name in ("", "t")
    ]
    kept = submission(tags=("x",))
    await ledger.submissions.submit([*old, kept])
    async with connected(ledger_database) as database:
        await database.fetch("UPDATE tasks SET status = 3, finished_at = now() - interval '2 days'")

        assert await ledger.upkeep.prune(DAY, DAY, 10) == 2

        rows = await database.fetch("SELECT tenant, tag, task_id::text FROM task_tags")
    assert rows == [("", "x", str(kept.id))]


async def test_a_list_by_time_looks_no_further_than_a_minute_back_and_seconds_ahead(
    ledger: PostgresLedger,
) -> None:
    ages_seconds = (-10, -3, 55, 65)
    ids = [task_id(age_seconds) for age_seconds in ages_seconds]
    await ledger.submissions.submit([submission(id=one) for one in ids])
    everything = (await ledger.tasks.find(CALLER, TaskFilter())).tasks
    created_at = everything[0].created_at

    only_then = TaskFilter(created_from=created_at, created_to=created_at + timedelta(milliseconds=1))
    found = (await ledger.tasks.find(CALLER, only_then)).tasks

    assert [task.id for task in everything] == ids
    assert [task.id for task in found] == ids[1:3]
