"""A link ends when it is told to."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from yarl import URL

from pipeline.broker.rabbit.link import Link


async def swallow_the_first_cancellation(asked: asyncio.Event) -> None:
    asked.set()
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


async def test_it_closes_also_where_the_library_swallows_the_cancellation() -> None:
    link, asked = Link(URL("amqp://guest:guest@127.0.0.1:1/"), "test"), asyncio.Event()
    link._keeper = keeper = asyncio.create_task(swallow_the_first_cancellation(asked))
    await asked.wait()
    await link.close()
    assert keeper.cancelled()
