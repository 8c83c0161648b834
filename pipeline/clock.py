"""Time as an argument, so that a test can move it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock and the waiting that goes with it."""

    def now(self) -> float:
        """Seconds since some fixed moment; never runs backwards."""

    async def sleep(self, seconds: float) -> None:
        """Return when `seconds` have passed on this clock."""


class MonotonicClock:
    """The real one."""

    def now(self) -> float:
        """Seconds since some fixed moment of this machine."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
