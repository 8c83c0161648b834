"""A clock that stands still until the test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools

SETTLING_TURNS = 20
"""Turns of the event loop given to whoever was woken: deeper chains of awaits than this are none of ours."""


class ManualClock:
    """Time passes only in `advance`; sleepers wake in the order of their deadlines."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        """Seconds advanced so far."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Return once `advance` has moved the clock `seconds` further."""
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: each sleeper due wakes at its own moment, and may sleep again within them."""
        end = self._now + seconds
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
                await _settle()
        self._now = end


async def _settle() -> None:
    for _ in range(SETTLING_TURNS):
        await asyncio.sleep(0)
