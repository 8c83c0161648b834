"""A consumer's end for tests: what was delivered, in order, awaited and not guessed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.broker import Delivery

PATIENCE_SECONDS = 20.0


class Inbox:
    """Pass it as `deliver`; `bodies` keeps all that ever came, `take` hands out each delivery once."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._waiting: asyncio.Queue[Delivery] = asyncio.Queue()

    def __call__(self, delivery: Delivery) -> None:
        self.bodies.append(delivery.body)
        self._waiting.put_nowait(delivery)

    async def take(self) -> Delivery:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._waiting.get()
