"""Ids of tasks: UUIDs of version 7, whose time is the database's and which rise within a process."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import structlog

from gateway.deadline import Late
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

log = structlog.get_logger()

REFRESH_SECONDS = 60.0
RETRY_SECONDS = 5.0

_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62
_TAIL_BITS = 74
_DRAW_BYTES = 9
_LOW = (1 << 62) - 1


def _draws() -> Iterator[int]:
    """Draw 72 random bits, so that a tail can rise; many at once, for a call of the system is slow."""
    while True:
        drawn = os.urandom(_DRAW_BYTES * 256)
        for start in range(0, len(drawn), _DRAW_BYTES):
            yield int.from_bytes(drawn[start : start + _DRAW_BYTES], "big")


class Ids:
    """Makes UUIDv7 as RFC 9562 section 5.7 lays them out, strictly rising (section 6.2, method 2).

    `offset_seconds` is how far the database's clock is ahead of this machine's: ids of several gateways
    then sort by one clock, and fall into the partition of their time.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.offset_seconds = 0.0
        self._now_ns = now_ns
        self._last_ms = 0
        self._tail = 0
        self._draws = _draws()

    def new(self) -> UUID:
        """Make an id that sorts behind all this process has made before, also when the clock steps back."""
        now_ms = (self._now_ns() + int(self.offset_seconds * 1e9)) // 1_000_000
        random = next(self._draws)
        if now_ms > self._last_ms:
            self._last_ms, self._tail = now_ms, random
        else:
            self._tail += (random & 0xFFFFFFFF) + 1
            if self._tail >> _TAIL_BITS:
                self._last_ms, self._tail = self._last_ms + 1, random
        high, low = self._tail >> 62, self._tail & _LOW
        number = self._last_ms << 80 | _VERSION | high << 64 | _VARIANT | low
        # UUID(int=…) takes twice as long, which shows in batches.
        return msgspec.convert(number.to_bytes(16, "big"), UUID)

    async def correct(self, measure: Callable[[], Awaitable[float]]) -> bool:
        """Measure the offset anew; False where the database could not be asked, and the old one stays."""
        try:
            self.offset_seconds = await measure()
        except (StorageError, Late) as error:
            log.debug("clock offset not measured", error=str(error))
            return False
        return True

    async def keep_correct(self, measure: Callable[[], Awaitable[float]]) -> None:
        """Measure now and then, for as long as the process lives."""
        measured = True
        while True:
            await asyncio.sleep(REFRESH_SECONDS if measured else RETRY_SECONDS)
            measured = await self.correct(measure)
