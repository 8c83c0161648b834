"""Tasks seen from outside, by SQL: whether all have ended, and whether they ended as they should."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from storage.model import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from storage.database import Database

ASK_SECONDS = 1800.0
LOOK_SECONDS = 0.25

_UNFINISHED = "SELECT FROM tasks WHERE tenant = '' AND status < 3 AND status <> 3 LIMIT 1"
_COMPLETED = "SELECT count(*)::int FROM (SELECT FROM results LIMIT $1) completed"
_COUNTS = "SELECT status::int, count(*)::int FROM tasks GROUP BY status"
_STORED = """
SELECT count(*)::int FROM tasks t JOIN payloads p ON p.task_id = t.id JOIN results r ON r.task_id = t.id
WHERE t.status = 3 AND ($1::bool OR r.body = p.body)
"""


class NotAsPromised(Exception):
    """A measurement whose tasks or calls did not all end as they should counts for nothing."""


class Observer:
    """Asks a database; to look is work for it too, so this is done four times a second at most."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def fetch(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement."""
        return await self._database.fetch(sql, parameters)

    async def all_ended(self, seconds: float) -> None:
        """Return soon after the last task has ended; raises TimeoutError."""

        async def reached() -> bool:
            return not await self.fetch(_UNFINISHED)

        await self._until(reached, seconds)

    async def completed(self, tasks: int, seconds: float) -> None:
        """Return soon after so many have been COMPLETED; raises TimeoutError."""

        async def reached() -> bool:
            return await self.fetch(_COMPLETED, tasks) == [(tasks,)]

        await self._until(reached, seconds)

    async def check(self, tasks: int, *, echoed: bool = True) -> None:
        """Check that there are so many tasks, all COMPLETED, and that every result is stored.

        `echoed` says that each result is the payload. Raises NotAsPromised.
        """
        counts = dict(await self.fetch(_COUNTS))
        if counts != {Status.COMPLETED: tasks}:
            raise NotAsPromised(f"of {tasks} tasks there are, by status: {counts}")
        [(stored,)] = await self.fetch(_STORED, not echoed)
        if stored != tasks:
            raise NotAsPromised(f"of {tasks} results {stored} are stored as they should be")

    async def _until(self, reached: Callable[[], Awaitable[bool]], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not await reached():  # noqa: ASYNC110 - other processes end them
                await asyncio.sleep(LOOK_SECONDS)
