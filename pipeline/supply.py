"""How much of what a relay finds the broker holds already, so that the relay need not hurry."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import structlog

from pipeline.broker import Depth
from pipeline.broker.topology import WORK_QUEUES
from pipeline.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.broker import Broker
    from pipeline.clock import Clock
    from storage.model import OutboxRow

log = structlog.get_logger()

ENOUGH_MESSAGES, ENOUGH_FOR_EACH = 64, 16
"""Ready in a work queue, beside what its workers have prefetched; more where there are many of them, among
whom a batch is divided into many small messages.
"""

ASK_SECONDS = 0.1
STALE_SECONDS = 1.0

LEAST_SHARE = 0.05
"""What is less of a batch does not count: for a few urgent tasks nobody hurries with all that waits. A
priority that has as much waiting as the others gets a tenth at least.
"""


NOTHING = Depth(ready=0, consumers=0)


class _Known(NamedTuple):
    depth: Depth
    at: float

    @property
    def is_enough(self) -> bool:
        """Whether there is somebody to work, with plenty ahead of him."""
        consumers = self.depth.consumers
        return consumers > 0 and self.depth.ready >= max(ENOUGH_MESSAGES, ENOUGH_FOR_EACH * consumers)


class Supply:
    """The depths of the work queues as they were lately; never waits for the broker.

    A queue of which nothing is known, as one without a leader, never has enough; nor has one without
    consumers, to which all goes at once.
    """

    def __init__(self, broker: Broker, clock: Clock | None = None) -> None:
        self._broker = broker
        self._clock = clock or MonotonicClock()
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def is_enough(self, rows: Sequence[OutboxRow]) -> bool:
        """Whether each queue that these rows go to, but for a few of them, holds enough messages."""
        routes = Counter(row.route for row in rows)
        found = [
            self._has_enough(route) for route, count in routes.items() if count >= LEAST_SHARE * len(rows)
        ]
        return bool(found) and all(found)

    def _has_enough(self, route: str) -> bool:
        if route not in WORK_QUEUES.values():  # where a message waits for its time, not for a worker
            return False
        known, now = self._known.get(route, _Known(NOTHING, -math.inf)), self._clock.now()
        if now - known.at >= ASK_SECONDS and route not in self._asking:
            self._asking[route] = asyncio.create_task(self._ask(route))
        return known.is_enough and now - known.at < STALE_SECONDS

    async def _ask(self, route: str) -> None:
        depth = None
        try:
            depth = await self._broker.depth(route)
        except Exception as error:  # noqa: BLE001 - a hint: whatever went wrong, the relay hurries
            log.debug("depth not told", queue=route, error=str(error))
        finally:
            del self._asking[route]
            self._known[route] = _Known(depth or NOTHING, self._clock.now())
