"""Whether a new task is taken: by how many tasks wait already, and by its priority."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import structlog

from gateway.problems import FieldError, Problem, ProblemType
from pipeline.broker.topology import work_route
from storage.errors import StorageError
from storage.model import Priority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.clock import Clock
    from pipeline.monitoring import Metrics
    from pipeline.ports import Submissions
    from storage.model import Submission

log = structlog.get_logger()

ROOM = {Priority.HIGH: 1.0, Priority.MEDIUM: 0.75, Priority.LOW: 0.5}
"""Up to which part of the limit tasks of a priority are taken: what is left of it is for higher ones."""

RETRY_AFTER_SECONDS = {Priority.HIGH: 5, Priority.MEDIUM: 10, Priority.LOW: 20}

COUNT_SECONDS = 1.0
LONGEST_COUNT_SECONDS = 10.0
COUNT_SHARE = 0.05  # of the time: 1,000,000 waiting tasks take PostgreSQL 0.1 to 0.3 seconds to count
CALM = 0.9  # of the room for LOW: a backlog that sways about its limit is told of once


class Admission:
    """Takes tasks while fewer wait than their priority has room for; a limit of 0 takes all.

    The ledger counts, at most once a second and only while tasks come; what was let in since is added, what
    other gateways let in is seen by the next count. While the database does not answer the last count stands.
    """

    def __init__(self, submissions: Submissions, limit: int, clock: Clock, metrics: Metrics) -> None:
        self._submissions = submissions
        self._limit = limit
        self._clock = clock
        self._metrics = metrics
        self._counted = 0
        self._let_in = 0
        self._next_count_at = clock.now()
        self._counting: asyncio.Task[None] | None = None
        self._refused: Priority | None = None

    @property
    def waiting(self) -> int:
        """About how many tasks wait for a worker."""
        return self._counted + self._let_in

    async def admits(self, batch: Sequence[Submission]) -> bool:
        """Tell whether the tasks of a request are taken, all or none: the lowest priority decides."""
        if not self._limit:
            return True
        lowest = max(submission.priority for submission in batch)
        counting = self._count_if_due()
        if counting and not self._has_room(lowest):
            # Nobody is refused by an old number: who asks once an hour would hear of the backlog an hour ago.
            await asyncio.shield(counting)
        if not self._has_room(lowest):
            return False
        self._let_in += len(batch)
        return True

    def refuse(self, batch: Sequence[Submission]) -> Problem:
        """Count and explain a refusal."""
        for submission in batch:
            self._metrics.tasks_refused.labels(work_route(submission.priority)).inc()
        lowest = max(submission.priority for submission in batch)
        if self._refused is None or lowest < self._refused:
            self._refused = lowest
            log.warning("tasks refused", priority=lowest.name, waiting=self.waiting, limit=self._limit)
        return backlog_full(lowest, self.waiting, self._limit)

    def _has_room(self, priority: Priority) -> bool:
        return self.waiting < _room(priority, self._limit)

    def _count_if_due(self) -> asyncio.Task[None] | None:
        if self._counting is None and self._clock.now() >= self._next_count_at:
            self._counting = asyncio.create_task(self._count(self._let_in))
        return self._counting

    async def _count(self, let_in: int) -> None:
        asked_at, pause_seconds = self._clock.now(), COUNT_SECONDS
        try:
            self._counted = await self._submissions.waiting(self._limit)
        except StorageError as error:
            log.debug("waiting tasks not counted", error=str(error))
        else:
            took_seconds = self._clock.now() - asked_at
            pause_seconds = min(max(COUNT_SECONDS, took_seconds / COUNT_SHARE), LONGEST_COUNT_SECONDS)
        finally:
            # They are in the new number; or, without one, they may not even have been written.
            self._let_in -= let_in
            self._next_count_at = self._clock.now() + pause_seconds
            self._counting = None
        self._calm_down()

    def _calm_down(self) -> None:
        if self._refused and self.waiting < CALM * _room(Priority.LOW, self._limit):
            self._refused = None
            log.info("tasks taken again", waiting=self.waiting, limit=self._limit)


def backlog_full(priority: Priority, waiting: int, limit: int) -> Problem:
    """Say which limit leaves no room for a priority, and which priorities it has room for."""
    rule = f"{priority.name} is taken while fewer than {_room(priority, limit)} tasks wait, and {waiting} do"
    taken = tuple(each.name for each in Priority if waiting < _room(each, limit))
    return Problem(
        ProblemType.BACKLOG_FULL,
        f"MAX_WAITING_TASKS is {limit}: {rule}",
        [FieldError("priority", rule, taken or None)],
        retry_after_seconds=RETRY_AFTER_SECONDS[priority],
    )


def _room(priority: Priority, limit: int) -> int:
    return math.ceil(limit * ROOM[priority])
