"""Many small writes as few large ones, without a timer: each write carries what came during the last."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import structlog

from storage.backoff import until_known
from storage.errors import Closed, OutcomeUnknown, Overloaded, Refused, StorageError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = structlog.get_logger()

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Waiting(NamedTuple, Generic[Item, Answer]):
    item: Item
    size_bytes: int
    rows: int
    answer: asyncio.Future[Answer]


class GroupCommit(Generic[Item, Answer]):
    """`await add(x)` returns the answer of `write` for x once x is durable.

    `write` takes a group and gives one answer each, in order; it must bear repetition. An item may weigh
    several rows, and is never divided. A group that is Refused is halved until the guilty item stands
    alone and its waiter gets the error. After OutcomeUnknown or Unavailable the same group is written
    again, never halved: its rows may be in. Any other failure goes to every waiter of the group. A waiter
    that leaves does not stop its write. Where a full group waits, up to `writers` write side by side.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        most_rows: int = 500,
        most_bytes: int = 4 << 20,
        waiting_rows: int = 20_000,
        waiting_bytes: int = 64 << 20,
        writers: int = 1,
    ) -> None:
        self._write = write
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self._waiting_rows, self._waiting_bytes = waiting_rows, waiting_bytes
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._rows = self._queued_rows = 0
        self._bytes = 0
        self._most_writers = writers
        self._writers: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many rows are not yet durable."""
        return self._rows

    async def add(self, item: Item, size_bytes: int = 0, rows: int = 1) -> Answer:
        """Write one item with its neighbours; raises Overloaded, Closed, Refused or what `write` raised."""
        if self._closed:
            raise Closed("this process is stopping")
        if self._rows + rows > self._waiting_rows or self._bytes + size_bytes > self._waiting_bytes:
            raise Overloaded(f"{self._rows} writes are waiting for the database")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(item, size_bytes, rows, answer))
        self._rows += rows
        self._queued_rows += rows
        self._bytes += size_bytes
        if not self._writers or (self._full_group_waits() and len(self._writers) < self._most_writers):
            self._writers.add(asyncio.create_task(self._write_all()))
        return await answer

    async def close(self, grace_seconds: float) -> None:
        """Take nothing on any more and let what waits become durable within the grace."""
        self._closed = True
        if self._writers:
            await asyncio.wait(self._writers, timeout=grace_seconds)
        if late := set(self._writers):
            for writer in late:
                writer.cancel()
            await asyncio.wait(late)

    def _full_group_waits(self) -> bool:
        return self._queued_rows >= self._most_rows

    async def _write_all(self) -> None:
        try:
            while self._queue and (len(self._writers) == 1 or self._full_group_waits()):
                await self._write_group(self._take())
        finally:
            self._writers.discard(asyncio.current_task())
            # Only after a cancelled writer is anything left; whoever waits for it must not wait for ever.
            while self._queue and not self._writers:
                self._answer(self._take(), Closed("the process stopped before this was durable"))

    def _take(self) -> list[_Waiting[Item, Answer]]:
        group: list[_Waiting[Item, Answer]] = []
        size_bytes = rows = 0
        while self._queue:
            size_bytes += self._queue[0].size_bytes
            rows += self._queue[0].rows
            if group and (size_bytes > self._most_bytes or rows > self._most_rows):
                break
            group.append(self._queue.popleft())
            self._queued_rows -= group[-1].rows
        return group

    async def _write_group(self, group: list[_Waiting[Item, Answer]]) -> None:
        try:
            answers = await self._write_until_known([waiting.item for waiting in group])
            if len(answers) != len(group):
                raise StorageError(f"{len(answers)} answers to {len(group)} writes")  # noqa: TRY301 - told below
        except Refused as error:
            if len(group) == 1:
                self._answer(group, error)
                return
            await self._write_halves(group)
        except BaseException as error:
            # psqlpy panics as a BaseException: the waiters must hear of it, or they hang for ever.
            self._answer(group, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._answer(group, answers)

    async def _write_halves(self, group: list[_Waiting[Item, Answer]]) -> None:
        middle = len(group) // 2
        try:
            await self._write_group(group[:middle])
        except asyncio.CancelledError as error:
            self._answer(group[middle:], error)
            raise
        await self._write_group(group[middle:])

    async def _write_until_known(self, items: list[Item]) -> Sequence[Answer]:
        return await until_known(
            lambda: self._write(items),
            (OutcomeUnknown, Unavailable),
            lambda error: log.warning("write repeated", items=len(items), error=str(error)),
        )

    def _answer(self, group: list[_Waiting[Item, Answer]], answers: Sequence[Answer] | BaseException) -> None:
        for position, waiting in enumerate(group):
            self._rows -= waiting.rows
            self._bytes -= waiting.size_bytes
            if waiting.answer.done():
                continue
            if not isinstance(answers, BaseException):
                waiting.answer.set_result(answers[position])
            elif isinstance(answers, asyncio.CancelledError):
                waiting.answer.set_exception(Closed("the process stopped before this was durable"))
            elif isinstance(answers, Exception):
                waiting.answer.set_exception(answers)
            else:
                waiting.answer.set_exception(Refused(f"{type(answers).__name__}: {answers}"))
