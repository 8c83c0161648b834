"""The relay's source: due outbox rows, leased in batches."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from pipeline.flow import Parcel, unless
from storage.channels import OUTBOX

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pipeline.ports import Outbox, Signals, Subscriber
    from storage.model import OutboxRow

GIVE_BACK_SECONDS = 1.0


async def _at_once() -> None:
    """Stand for a broker that is always there."""


class PollOutbox:
    """Pulls a batch of leased rows; gives a batch back, due again after a moment, when it is not carried on.

    Polling every `poll_seconds` is the truth, a wake-up only shortens the wait. While `ready` does not
    return, no row is leased: an outage of the broker touches none.
    """

    def __init__(
        self,
        outbox: Outbox,
        signals: Signals,
        *,
        ready: Callable[[], Coroutine[Any, Any, None]] = _at_once,
        batch_size: int = 500,
        poll_seconds: float = 1.0,
        lease_seconds: float = 30.0,
    ) -> None:
        self._outbox = outbox
        self._signals = signals
        self._ready = ready
        self._batch_size = batch_size
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._stopping = asyncio.Event()
        self._subscription = AsyncExitStack()
        self._wakeup: Subscriber

    async def __aenter__(self) -> Self:
        """Listen for wake-ups."""
        self._wakeup = await self._subscription.enter_async_context(self._signals.subscribe(OUTBOX))
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Listen no more."""
        await self._subscription.aclose()

    async def pull(self) -> Parcel[list[OutboxRow]] | None:
        """Wait for due rows; None once the relay is stopping."""
        while not self._stopping.is_set():
            await unless(self._stopping, self._ready())
            if self._stopping.is_set():
                break
            rows = await self._outbox.poll(self._batch_size, self._lease_seconds)
            if rows:
                return self._parcel(rows)
            await unless(self._stopping, self._wakeup.wait(self._poll_seconds))
        return None

    def _parcel(self, rows: list[OutboxRow]) -> Parcel[list[OutboxRow]]:
        async def settle(failure: BaseException | None) -> None:
            if failure is not None:
                await self._outbox.release([row.id for row in rows], GIVE_BACK_SECONDS)

        return Parcel(rows, settle)

    async def quiesce(self) -> None:
        """Lease nothing more; what is due stays in the outbox."""
        self._stopping.set()
