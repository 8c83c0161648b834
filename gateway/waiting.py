"""Waiting for tasks to end: however many clients wait, one query a wake-up serves them all."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from gateway.deadline import Late
from gateway.problems import Problem, ProblemType
from storage.channels import DONE
from storage.errors import Overloaded, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from litestar.types import Receive

    from gateway.deadline import Deadline
    from pipeline.ports import Signals, Tasks

log = structlog.get_logger()

POLL_SECONDS = 1.0
REST_SECONDS = 0.01
MOST_WAITERS = 10_000


class Watch:
    """One client's interest in one task."""

    def __init__(self, task_id: UUID) -> None:
        self.task_id = task_id
        self.ended = asyncio.Event()

    async def wait(self, seconds: float, receive: Receive) -> None:
        """Return when the task has ended or the time is up; raises Problem 499 when the client has gone."""
        ended = asyncio.create_task(self.ended.wait())
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({ended, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not ended.done():
                raise Problem(ProblemType.CLIENT_GONE, "nobody waits for the answer any more")
        finally:
            ended.cancel()
            gone.cancel()


class Waiting:
    """The gateway's waiting room.

    While somebody is in it, one loop subscribes to the ledger's wake-ups and asks for the statuses of all
    watched tasks: when woken, and every POLL_SECONDS, since a wake-up is only a hint.
    """

    def __init__(
        self, tasks: Tasks, signals: Signals, deadline: Deadline, most_waiters: int = MOST_WAITERS
    ) -> None:
        self._tasks = tasks
        self._signals = signals
        self._deadline = deadline
        self._most_waiters = most_waiters
        self._watches: set[Watch] = set()
        self._watching: asyncio.Task[None] | None = None
        self._released = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._watches)

    @contextmanager
    def watch(self, task_id: UUID) -> Iterator[Watch]:
        """Watch a task; begun before its status is first read, no end slips between the two.

        Raises Overloaded where too many wait already. An id that is not (yet) in the ledger has not ended.
        """
        if len(self._watches) >= self._most_waiters:
            raise Overloaded(f"{len(self._watches)} clients wait for tasks")
        watch = Watch(task_id)
        self._watches.add(watch)
        if self._released:
            watch.ended.set()
        elif self._watching is None:
            self._watching = asyncio.create_task(self._watch_all())
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def release(self) -> None:
        """Let everybody go, now and from now on: the process is stopping."""
        self._released = True
        for watch in self._watches:
            watch.ended.set()

    async def _watch_all(self) -> None:
        try:
            while self._watches:  # again, for who came while the subscription was being closed
                async with self._signals.subscribe(DONE) as wakeup:
                    while self._watches:
                        await self._look()
                        # Wake-ups come every few milliseconds under load: a hundred looks a second will do.
                        await asyncio.sleep(REST_SECONDS)
                        await wakeup.wait(POLL_SECONDS)
        finally:
            self._watching = None

    async def _look(self) -> None:
        watched: dict[UUID, list[Watch]] = {}
        for watch in self._watches:
            watched.setdefault(watch.task_id, []).append(watch)
        try:
            statuses = await self._deadline(self._tasks.statuses(list(watched)))
        except (StorageError, Late) as error:
            log.debug("statuses not read, asking again", error=str(error))
            return
        for task_id, (_tenant, status) in statuses.items():
            if status.terminal:
                for watch in watched[task_id]:
                    watch.ended.set()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
