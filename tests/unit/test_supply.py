"""Supply: when a relay need not hurry, by what it has lately heard of the queues."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pipeline.broker import BrokerUnavailable, Depth
from pipeline.supply import ASK_SECONDS, ENOUGH_FOR_EACH, ENOUGH_MESSAGES, STALE_SECONDS, Supply
from pipeline.testing import ManualClock, MemoryBroker
from storage.model import OutboxRow, Priority
from tests.support.builders import run
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGH, LOW, RETRY = "tasks.high", "tasks.low", "tasks.low.retry.5s"


class Holding(MemoryBroker):
    """Holds so many messages in each queue; None for one that does not answer."""

    def __init__(self, held: Mapping[str, int | None], consumers: int = 1) -> None:
        super().__init__()
        self.held = dict(held)
        self.consumers = consumers
        self.asked: list[str] = []
        self.silent: asyncio.Event | None = None

    async def depth(self, queue: str) -> Depth | None:
        self.asked.append(queue)
        if self.silent is not None:  # as a queue without a leader is
            await self.silent.wait()
        ready = self.held.get(queue, 0)
        if ready is None:
            raise BrokerUnavailable("no answer")
        return Depth(ready, self.consumers)


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
        ({LOW: ENOUGH_MESSAGES, HIGH: 0}, rows(low=61, high=3), True),
        ({LOW: 0, HIGH: ENOUGH_MESSAGES}, rows(low=12, high=116), False),
        ({LOW: ENOUGH_MESSAGES, HIGH: ENOUGH_MESSAGES}, rows(low=12, high=116), True),
        ({LOW: ENOUGH_MESSAGES, RETRY: ENOUGH_MESSAGES}, rows(low=12, retry=116), False),
        ({}, [], False),
    ],
)
async def test_every_queue_of_a_share_of_the_rows_must_hold_enough(
    held: Mapping[str, int | None], found: list[OutboxRow], *, enough: bool
) -> None:
    assert await told(Supply(Holding(held), ManualClock()), found) is enough


@pytest.mark.parametrize(
    ("consumers", "ready", "enough"),
    [
        (0, 1_000, False),
        (4, ENOUGH_MESSAGES, True),
        (10, 10 * ENOUGH_FOR_EACH - 1, False),
        (10, 10 * ENOUGH_FOR_EACH, True),
    ],
)
async def test_the_more_work_the_more_is_enough_and_for_nobody_nothing_is(
    consumers: int, ready: int, *, enough: bool
) -> None:
    assert await told(Supply(Holding({LOW: ready}, consumers), ManualClock()), rows(low=1)) is enough


async def test_a_queue_that_answers_no_more_is_supposed_to_be_empty() -> None:
    clock, broker = ManualClock(), Holding({LOW: ENOUGH_MESSAGES})
    supply = Supply(broker, clock)
    assert await told(supply, rows(low=1))
    broker.held[LOW] = None
    await clock.advance(ASK_SECONDS)
    assert supply.is_enough(rows(low=1)), "the answer is not here yet"
    await asyncio.sleep(0)
    assert not supply.is_enough(rows(low=1))


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
    for _ in range(5):
        await clock.advance(STALE_SECONDS)
        assert not supply.is_enough(rows(low=1))
        await asyncio.sleep(0)
    assert broker.asked == [LOW, LOW], "one question is under way, and no second one"
    broker.silent.set()
    await eventually(lambda: supply.is_enough(rows(low=1)))
