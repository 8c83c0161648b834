"""The dead-letter role's source: the messages of a queue, whole."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

from pipeline.clock import MonotonicClock
from pipeline.flow import Parcel, unless

if TYPE_CHECKING:
    from pipeline.broker import Broker, Delivery, Subscription
    from pipeline.clock import Clock

AGAIN_SECONDS = 1.0


class Receive:
    """Pulls the messages of one queue, whole; each is acked when its flow has carried it through."""

    def __init__(self, broker: Broker, queue: str, prefetch: int = 16, clock: Clock | None = None) -> None:
        self._broker = broker
        self._queue = queue
        self._prefetch = prefetch
        self._clock = clock or MonotonicClock()
        self._received: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        self._subscription: Subscription

    async def __aenter__(self) -> Self:
        """Listen to the queue."""
        self._subscription = await self._broker.consume(self._queue, self._prefetch, self._deliver)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave nothing open: quiesce has given back what was not pulled."""

    def _deliver(self, delivery: Delivery) -> None:
        self._received.append(delivery)
        self._arrived.set()

    async def pull(self) -> Parcel[Delivery] | None:
        """Wait for a message; None once it is stopping."""
        while not self._stopping.is_set():
            if self._received:
                return self._parcel(self._received.popleft())
            self._arrived.clear()
            await unless(self._stopping, self._arrived.wait())
        return None

    def _parcel(self, delivery: Delivery) -> Parcel[Delivery]:
        async def settle(failure: BaseException | None) -> None:
            if failure is None:
                await delivery.ack()
            else:
                # Kept in hand for a moment: a nack at once would come straight back, and raise its count.
                await unless(self._stopping, self._clock.sleep(AGAIN_SECONDS))
                await delivery.nack()

        return Parcel(delivery, settle)

    async def quiesce(self) -> None:
        """Take no more and give back what was not pulled."""
        self._stopping.set()
        await self._subscription.cancel()
        while self._received:
            await self._received.popleft().nack()
