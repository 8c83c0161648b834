"""How much of what a relay finds the broker holds already, so that the relay need not hurry."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from pipeline.broker import BrokerUnavailable
from pipeline.broker.topology import WORK_QUEUES
from pipeline.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.broker import Broker
    from pipeline.clock import Clock
    from storage.model import OutboxRow

ENOUGH_MESSAGES = 64
"""Ready in a work queue, beside what its workers have prefetched: under load some 4,000 references."""

ASK_SECONDS = 0.1
STALE_SECONDS = 1.0

LEAST_SHARE = 0.1
"""What is less of a batch does not count: for a few urgent tasks nobody hurries with all that waits."""


class _Known(NamedTuple):
    ready: int
    at: float


class Supply:
    """The depths of the work queues as they were lately; never waits for the broker.

    A queue of which nothing is known, as one without a leader, counts as empty.
    """

    def __init__(self, broker: Broker, clock: Clock | None = None) -> None:
        self._broker = broker
        self._clock = clock or MonotonicClock()
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def is_enough(self, rows: Sequence[OutboxRow]) -> bool:
        """Whether each queue that these rows go to, but for a few of them, holds enough messages."""
        routes = Counter(row.route for row in rows)
        found = [self._ready(route) for route, count in routes.items() if count >= LEAST_SHARE * len(rows)]
        return bool(found) and min(found) >= ENOUGH_MESSAGES

    def _ready(self, route: str) -> int:
        if route not in WORK_QUEUES.values():  # where a message waits for its time, not for a worker
            return 0
        known, now = self._known.get(route, _Known(0, -math.inf)), self._clock.now()
        if now - known.at >= ASK_SECONDS and route not in self._asking:
            self._asking[route] = asyncio.create_task(self._ask(route))
        return known.ready if now - known.at < STALE_SECONDS else 0

    async def _ask(self, route: str) -> None:
        try:
            depth = await self._broker.depth(route)
        except BrokerUnavailable:
            depth = None
        finally:
            del self._asking[route]
        self._known[route] = _Known(depth.ready if depth else 0, self._clock.now())
