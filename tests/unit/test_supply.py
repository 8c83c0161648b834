"""Supply: when a relay need not hurry, by what it has lately heard of the queues."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pipeline.broker import BrokerUnavailable, Depth
from pipeline.supply import ASK_SECONDS, ENOUGH_MESSAGES, STALE_SECONDS, Supply
from pipeline.testing import ManualClock, MemoryBroker
from storage.model import OutboxRow, Priority
from tests.support.builders import run

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGH, LOW, RETRY = "tasks.high", "tasks.low", "tasks.low.retry.5s"


class Holding(MemoryBroker):
    """Holds so many messages in each queue; None for one that does not answer."""

    def __init__(self, held: Mapping[str, int | None]) -> None:
        super().__init__()
        self.held = dict(held)
        self.asked: list[str] = []
        self.silent: asyncio.Event | None = None

    async def depth(self, queue: str) -> Depth | None:
        self.asked.append(queue)
        if self.silent is not None:  # as a queue without a leader is
            await self.silent.wait()
        ready = self.held.get(queue, 0)
        if ready is None:
            raise BrokerUnavailable("no answer")
        return Depth(ready, consumers=1)


def rows(**counts: int) -> list[OutboxRow]:
    routes = {"high": HIGH, "low": LOW, "retry": RETRY}
    return [
        OutboxRow(id=number, task_id=run().task_id, dispatch=1, priority=Priority.LOW, route=routes[name])
        for name, count in counts.items()
        for number in range(count)
    ]


async def told(supply: Supply, found: list[OutboxRow]) -> bool:
    """Ask twice: the first time nothing is known yet."""
    assert not supply.is_enough(found)
    await asyncio.sleep(0)
    return supply.is_enough(found)


@pytest.mark.parametrize(
    ("held", "found", "enough"),
    [
        ({LOW: ENOUGH_MESSAGES}, rows(low=10), True),
        ({LOW: ENOUGH_MESSAGES - 1}, rows(low=10), False),
        ({LOW: ENOUGH_MESSAGES, HIGH: 0}, rows(low=60, high=4), True),
        ({LOW: ENOUGH_MESSAGES, HIGH: 0}, rows(low=54, high=6), False),
        ({LOW: ENOUGH_MESSAGES, HIGH: ENOUGH_MESSAGES}, rows(low=54, high=6), True),
        ({RETRY: ENOUGH_MESSAGES}, rows(retry=10), False),
        ({LOW: None}, rows(low=10), False),
        ({}, [], False),
    ],
)
async def test_every_queue_of_a_share_of_the_rows_must_hold_enough(
    held: Mapping[str, int | None], found: list[OutboxRow], *, enough: bool
) -> None:
    assert await told(Supply(Holding(held), ManualClock()), found) is enough


async def test_a_queue_is_asked_now_and_then_and_what_is_old_counts_no_more() -> None:
    clock, broker = ManualClock(), Holding({LOW: ENOUGH_MESSAGES})
    supply = Supply(broker, clock)
    assert await told(supply, rows(low=1))
    assert broker.asked == [LOW]
    broker.held[LOW] = 0
    await clock.advance(ASK_SECONDS)
    assert supply.is_enough(rows(low=1)), "the answer is not here yet"
    await asyncio.sleep(0)
    assert not supply.is_enough(rows(low=1))
    assert broker.asked == [LOW, LOW]


async def test_nobody_waits_for_a_queue_that_does_not_answer() -> None:
    clock, broker = ManualClock(), Holding({LOW: ENOUGH_MESSAGES})
    supply = Supply(broker, clock)
    assert await told(supply, rows(low=1))
    broker.silent = asyncio.Event()
    await clock.advance(STALE_SECONDS)
    assert not supply.is_enough(rows(low=1))
    broker.silent.set()
    await eventually_enough(supply)


async def eventually_enough(supply: Supply) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert supply.is_enough(rows(low=1))
