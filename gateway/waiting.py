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
    from pipeline.ports import Signals, Subscriber, Tasks
    from storage.model import Task

log = structlog.get_logger()

POLL_SECONDS = 1.0
LINGER_SECONDS = 30.0
"""How long the wake-ups are kept after the last waiter: to subscribe anew takes a connection and 5 ms."""

MOST_WAITERS = 10_000
MOST_ENDED = 100
"""How many tasks one look takes whole; where more have ended, another follows at once."""


class Watch:
    """One client's interest in one task."""

    def __init__(self, task_id: UUID) -> None:
        self.task_id = task_id
        self.task: Task | None = None
        self._over = asyncio.Event()

    def end(self, task: Task | None) -> None:
        """Let the client go, with the task that has ended where there is one."""
        self.task = task
        self._over.set()

    async def wait(self, seconds: float, receive: Receive) -> Task | None:
        """Return the task when it has ended, None when the time is up.

        Raises Problem 499 when the client has gone.
        """
        ended = asyncio.create_task(self._over.wait())
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({ended, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not ended.done():
                raise Problem(ProblemType.CLIENT_GONE, "nobody waits for the answer any more")
        finally:
            ended.cancel()
            gone.cancel()
        return self.task


class Waiting:
    """The gateway's waiting room.

    While somebody is in it, and LINGER_SECONDS longer, one loop subscribes to the ledger's wake-ups. It asks
    which of all watched tasks have ended when woken, and every POLL_SECONDS, since a wake-up is only a hint.
    """

    def __init__(
        self,
        tasks: Tasks,
        signals: Signals,
        deadline: Deadline,
        most_waiters: int = MOST_WAITERS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._tasks = tasks
        self._signals = signals
        self._deadline = deadline
        self._most_waiters = most_waiters
        self._linger_seconds = linger_seconds
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
            watch.end(None)
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
            watch.end(None)

    async def _watch_all(self) -> None:
        try:
            while self._watches:  # again, for who came while the subscription was being closed
                async with self._signals.subscribe(DONE) as wakeup:
                    await self._look_when_woken(wakeup)
        finally:
            self._watching = None

    async def _look_when_woken(self, wakeup: Subscriber) -> None:
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while self._watches or (loop.time() - looked_at < self._linger_seconds and not self._released):
            if self._watches:
                began_at = loop.time()
                while await self._look() == MOST_ENDED:
                    pass
                looked_at = loop.time()
                # Under load wake-ups come without end, and each look takes longer: it has half of the time.
                await asyncio.sleep(looked_at - began_at)
            await wakeup.wait(POLL_SECONDS)

    async def _look(self) -> int:
        """Hand over what has ended; how many tasks that were."""
        watched: dict[UUID, list[Watch]] = {}
        for watch in self._watches:
            if watch.task is None:
                watched.setdefault(watch.task_id, []).append(watch)
        if not watched:
            return 0
        try:
            ended = await self._deadline(self._tasks.ended(list(watched), MOST_ENDED))
        except (StorageError, Late) as error:
            log.debug("ends not read, asking again", error=str(error))
            return 0
        for task_id, task in ended.items():
            for watch in watched[task_id]:
                watch.end(task)
        return len(ended)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
