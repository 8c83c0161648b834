"""The relay's source: due outbox rows, leased in batches."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import structlog

from pipeline.clock import MonotonicClock
from pipeline.flow import Parcel, unless
from storage.channels import OUTBOX
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from pipeline.clock import Clock
    from pipeline.ports import Outbox, Signals, Subscriber
    from storage.model import OutboxRow

log = structlog.get_logger()

GIVE_BACK_SECONDS = 1.0
LEASE_SECONDS = 5.0
"""How long a dead relay keeps others from its rows; one that lives renews, and seldom has to."""
RESTS = 4
"""From a poll that found few rows to the next it takes so many times as long as the poll itself: a busy
database is asked less often for more, and all that follows carries more at a time.
"""
WOKEN_RESTS = 2
"""The same while the broker holds enough, for a relay that is woken: what came may be urgent."""
LONGEST_REST_SECONDS = 0.05
"""However long a poll took: one that waited for a stalled disk tells nothing of the next. Without a bound a
stall of half a second was followed by one and a half without a poll, and workers had nothing to do.
"""
FEW_ROWS = 128
"""A batch while the broker holds enough: relay and database leave the machine to those who work."""


async def _at_once() -> None:
    """Stand for a broker that is always there."""


def _never(_rows: Sequence[OutboxRow]) -> bool:
    """Stand for a broker that never holds enough."""
    return False


class PollOutbox:
    """Pulls a batch of leased rows; gives a batch back, due again after a moment, when it is not carried on.

    The lease is short, so that what a dead relay held is soon another one's; a batch that takes longer than
    others has it renewed. Polling every `poll_seconds` is the truth, a wake-up only shortens the wait; after
    a batch that was not full nothing is left to ask for. While `enough` says of a batch that the broker holds
    plenty of its like, the next ones are small and seldom. While `ready` does not return, no row is leased:
    an outage of the broker touches none.
    """

    def __init__(
        self,
        outbox: Outbox,
        signals: Signals,
        *,
        ready: Callable[[], Coroutine[Any, Any, None]] = _at_once,
        enough: Callable[[Sequence[OutboxRow]], bool] = _never,
        batch_size: int = 500,
        poll_seconds: float = 1.0,
        lease_seconds: float = LEASE_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self._outbox = outbox
        self._signals = signals
        self._ready = ready
        self._enough = enough
        self._batch_size = batch_size
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._clock = clock or MonotonicClock()
        self._more, self._hurry = True, True
        self._polled_at = self._took_seconds = 0.0
        self._renewing: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._subscription = AsyncExitStack()
        self._wakeup: Subscriber

    async def __aenter__(self) -> Self:
        """Listen for wake-ups."""
        self._wakeup = await self._subscription.enter_async_context(self._signals.subscribe(OUTBOX))
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Listen no more; what was not settled is any relay's once its lease has run out."""
        for renewing in self._renewing:
            renewing.cancel()
        await self._subscription.aclose()

    async def pull(self) -> Parcel[list[OutboxRow]] | None:
        """Wait for due rows; None once the relay is stopping."""
        while not self._stopping.is_set():
            if not self._more:
                await self._woken(self._poll_seconds)
                await self._rest_until(RESTS)
            elif not self._hurry:
                await self._rest_until(WOKEN_RESTS)
                await self._woken(self._seconds_until(RESTS))
            await unless(self._stopping, self._ready())
            if self._stopping.is_set():
                break
            most = self._batch_size if self._hurry else min(FEW_ROWS, self._batch_size)
            self._polled_at = self._clock.now()
            rows = await self._outbox.poll(most, self._lease_seconds)
            self._took_seconds = self._clock.now() - self._polled_at
            self._more = len(rows) >= most
            self._hurry = not self._enough(rows)
            if rows:
                return self._parcel(rows)
        return None

    async def _woken(self, seconds: float) -> None:
        if seconds > 0:
            await unless(self._stopping, self._wakeup.wait(seconds))

    async def _rest_until(self, times: float) -> None:
        if (seconds := self._seconds_until(times)) > 0:
            await unless(self._stopping, self._clock.sleep(seconds))

    def _seconds_until(self, times: float) -> float:
        """Tell how long it is until so many times what the last poll took have passed since it began.

        No longer than LONGEST_REST_SECONDS after it ended.
        """
        rest_seconds = min((times - 1) * self._took_seconds, LONGEST_REST_SECONDS)
        return self._polled_at + self._took_seconds + rest_seconds - self._clock.now()

    def _parcel(self, rows: list[OutboxRow]) -> Parcel[list[OutboxRow]]:
        ids, settled = [row.id for row in rows], asyncio.Event()
        renewing = asyncio.create_task(self._renew(ids, settled))
        self._renewing.add(renewing)
        renewing.add_done_callback(self._renewing.discard)

        async def settle(failure: BaseException | None) -> None:
            settled.set()
            if failure is not None:
                await self._outbox.release(ids, GIVE_BACK_SECONDS)

        return Parcel(rows, settle)

    async def _renew(self, row_ids: list[int], settled: asyncio.Event) -> None:
        """Keep the lease of a batch while it is under way. Lost, it only costs doubled messages."""
        while True:
            await unless(settled, self._clock.sleep(self._lease_seconds / 3))
            if settled.is_set():
                return
            try:
                await self._outbox.renew(row_ids, self._lease_seconds)
            except StorageError as error:
                log.warning("lease not renewed", rows=len(row_ids), error=str(error))

    async def quiesce(self) -> None:
        """Lease nothing more; what is due stays in the outbox."""
        self._stopping.set()
