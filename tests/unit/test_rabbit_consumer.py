"""A subscription ends when it is told to."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

from pipeline.broker.rabbit.consumer import RabbitSubscription


class Broker:
    """Stands for link and declarer; swallows the first cancellation, as aiormq may."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def connected(self) -> Broker:
        return self

    async def declare(self, _connection: object, _queue: str) -> None:
        self.asked.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()


async def test_it_stops_also_where_the_library_swallows_the_cancellation() -> None:
    broker = cast("Any", Broker())
    subscription = RabbitSubscription(broker, broker, "tasks.low", 1, lambda _: None, watch_seconds=1.0)
    await broker.asked.wait()
    async with asyncio.timeout(5):
        await subscription.close()
