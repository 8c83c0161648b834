"""Hands a batch of outbox rows to the broker and tells what it said of each."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
import structlog

from pipeline.broker import Message, Publication, QueueMismatch
from pipeline.broker.topology import UnknownRoute
from pipeline.flow import Stage
from pipeline.references import encode
from storage.model import Capacity, OutboxRow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pipeline.broker import Broker
    from storage.model import Priority

log = structlog.get_logger()

MOST_REFERENCES = 64
"""What one message carries at most: beyond it packing gains little, and one worker would get too much."""

CAPACITY_SECONDS = 1.0

SUPPOSED = Capacity(workers=16, free=16 * MOST_REFERENCES)
"""Who will come where nobody works now. A message for each reference took the broker 1 KB of memory, and the
workers that returned three times as long; too large a message is handed back in part.
"""


class Published(msgspec.Struct, frozen=True):
    """What the broker said of a batch.

    `confirmed` it holds; `unsent` it refused for now or said nothing of; `undeliverable` no queue takes.
    """

    confirmed: list[OutboxRow] = []
    unsent: list[OutboxRow] = []
    undeliverable: list[OutboxRow] = []


async def _nobody() -> dict[Priority, Capacity]:
    return {}


class Publish(Stage[list[OutboxRow], Published]):
    """Publishes a batch at once, many references to a message where many were found.

    A returned message makes it declare the route and send once more. Raises BrokerUnavailable.
    """

    def __init__(
        self, broker: Broker, capacity: Callable[[], Awaitable[dict[Priority, Capacity]]] = _nobody
    ) -> None:
        self._broker = broker
        self._ask_capacity = capacity
        self._capacity: dict[Priority, Capacity] = {}
        self._asked_at = -CAPACITY_SECONDS

    async def __call__(self, rows: list[OutboxRow]) -> Published:
        """Send every row's reference; one answer for each row."""
        published = Published()
        returned = await self._send(await self._packs(rows), published)
        if returned:
            routes = {pack[0].route for pack in returned}
            declared = {route for route in routes if await self._declare(route)}
            again = await self._send([pack for pack in returned if pack[0].route in declared], published)
            for pack in [*again, *(pack for pack in returned if pack[0].route not in declared)]:
                published.undeliverable.extend(pack)
        return published

    async def _packs(self, rows: list[OutboxRow]) -> list[list[OutboxRow]]:
        by_route: dict[str, list[OutboxRow]] = defaultdict(list)
        for row in rows:
            by_route[row.route].append(row)
        packs = []
        for found in by_route.values():
            size = await self._pack_size(found)
            packs += [found[start : start + size] for start in range(0, len(found), size)]
        return packs

    async def _pack_size(self, rows: list[OutboxRow]) -> int:
        """Divide what was found among the live workers, but give none more than it reports slots for."""
        if len(rows) == 1:
            return 1
        if time.monotonic() - self._asked_at >= CAPACITY_SECONDS:
            self._capacity = await self._ask_capacity()
            self._asked_at = time.monotonic()
        capacity = self._capacity.get(rows[0].priority, SUPPOSED)
        if not capacity.workers:
            capacity = SUPPOSED
        share = -(-len(rows) // capacity.workers)
        return max(1, min(share, capacity.free // capacity.workers, MOST_REFERENCES))

    async def _send(self, packs: list[list[OutboxRow]], published: Published) -> list[list[OutboxRow]]:
        if not packs:
            return []
        messages = [Message(pack[0].route, encode(row.reference for row in pack)) for pack in packs]
        returned = []
        for pack, publication in zip(packs, await self._broker.publish(messages), strict=True):
            match publication:
                case Publication.CONFIRMED:
                    published.confirmed.extend(pack)
                case Publication.RETURNED:
                    returned.append(pack)
                case Publication.REFUSED | Publication.UNKNOWN:
                    published.unsent.extend(pack)
        return returned

    async def _declare(self, route: str) -> bool:
        """Declare a route; False where there can be no such queue."""
        try:
            await self._broker.declare(route)
        except UnknownRoute as error:
            log.warning("route cannot be declared", route=route, error=str(error))
            return False
        except QueueMismatch as error:
            # All that could be declared is: whether the route takes messages, the second sending shows.
            log.warning("queue is not as declared", route=route, error=str(error))
        return True
