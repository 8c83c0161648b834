"""The source of everything that happens by the clock."""

from __future__ import annotations

import asyncio
import random
from typing import Self

from pipeline.clock import Clock, MonotonicClock
from pipeline.flow import Parcel, unless


async def _nothing(_failure: BaseException | None) -> None:
    """Settle a tick: there is nothing to give back, the next one comes anyway."""


class Every:
    """Pulls a tick at once and then every `seconds`, jittered by a tenth so that processes spread out."""

    def __init__(self, seconds: float, clock: Clock | None = None) -> None:
        self._seconds = seconds
        self._clock = clock or MonotonicClock()
        self._stopping = asyncio.Event()
        self._first = True

    async def __aenter__(self) -> Self:
        """Open nothing."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close nothing."""

    async def pull(self) -> Parcel[None] | None:
        """Wait for the next tick; None once it is stopping."""
        if not self._first:
            jitter = random.uniform(0.9, 1.1)  # noqa: S311 - jitter
            await unless(self._stopping, self._clock.sleep(self._seconds * jitter))
        self._first = False
        return None if self._stopping.is_set() else Parcel(None, _nothing)

    async def quiesce(self) -> None:
        """Tick no more."""
        self._stopping.set()
