"""Wake-ups within one process, by the clock that the test moves."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pipeline.clock import Clock


class MemorySubscriber:
    """`pipeline.ports.Subscriber`: a wake-up that comes while nobody waits is kept for the next wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Wake whoever waits, now or next."""
        self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Return when woken or after `seconds` of the clock, whichever is first."""
        waiting = {
            asyncio.create_task(self._clock.sleep(seconds)),
            asyncio.create_task(self._wait_for_wake_up()),
        }
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            self._woken.clear()

    async def _wait_for_wake_up(self) -> None:
        await self._woken.wait()


class MemorySignals:
    """`pipeline.ports.Signals` without a database: a wake-up arrives at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._subscribers: defaultdict[str, set[MemorySubscriber]] = defaultdict(set)

    def notify(self, channel: str) -> None:
        """Wake the subscribers of a channel."""
        for subscriber in self._subscribers[channel]:
            subscriber.wake()

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[MemorySubscriber]:
        """Listen for as long as the context is open."""
        subscriber = MemorySubscriber(self._clock)
        self._subscribers[channel].add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers[channel].discard(subscriber)
