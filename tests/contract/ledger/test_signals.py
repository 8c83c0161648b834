"""Wake-ups: who listens to a channel is woken, and who writes rings."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from storage.channels import DONE, OUTBOX
from storage.model import Caller
from tests.contract.ledger.walk import LEASE_SECONDS, reference
from tests.support import builders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pipeline.ports import Ledger, Subscriber
    from tests.contract.ledger.walk import Walk
    from tests.support.backends import Backend

LONG_SECONDS = 1000.0


async def woken(subscriber: Subscriber) -> None:
    """Wait for a wake-up; a test's patience is shorter than that of the wait."""
    async with asyncio.timeout(5):
        await subscriber.wait(LONG_SECONDS)


@asynccontextmanager
async def listening(ledger: Ledger, channel: str) -> AsyncIterator[Subscriber]:
    """Listen, and have forgotten all wake-ups so far."""
    async with ledger.signals.subscribe(channel) as subscriber:
        ledger.signals.notify(channel)
        await woken(subscriber)
        await quiet(subscriber)
        yield subscriber


async def quiet(subscriber: Subscriber) -> None:
    """Return once no wake-up has come for a moment; it takes several where some were still under way."""
    while True:
        waiting = asyncio.create_task(subscriber.wait(LONG_SECONDS))
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        if not done:
            waiting.cancel()
            await asyncio.wait({waiting})
            return


async def test_who_listens_to_the_channel_is_woken_and_nobody_else(ledger: Ledger) -> None:
    async with (
        listening(ledger, OUTBOX) as one,
        listening(ledger, OUTBOX) as two,
        listening(ledger, DONE) as other,
    ):
        waiting = asyncio.create_task(other.wait(LONG_SECONDS))

        ledger.signals.notify(OUTBOX)

        await asyncio.gather(woken(one), woken(two))
        assert not waiting.done()
        ledger.signals.notify(DONE)
        await asyncio.wait_for(waiting, 5)


async def test_a_wake_up_is_kept_for_the_next_wait_and_then_forgotten(ledger: Ledger) -> None:
    async with listening(ledger, OUTBOX) as one, listening(ledger, OUTBOX) as two:
        ledger.signals.notify(OUTBOX)
        await woken(one)

        await woken(two)

        waiting = asyncio.create_task(two.wait(LONG_SECONDS))
        await asyncio.wait({waiting}, timeout=0.1)
        assert not waiting.done()
        waiting.cancel()


async def test_a_wait_ends_by_itself(ledger: Ledger, time: Backend) -> None:
    async with listening(ledger, OUTBOX) as subscriber:
        waiting = asyncio.create_task(subscriber.wait(0.05))
        await asyncio.sleep(0)
        await time.advance(0.1)

        await asyncio.wait_for(waiting, 5)


async def test_notifying_when_nobody_listens_is_harmless(ledger: Ledger, walk: Walk) -> None:
    for _ in range(100):
        ledger.signals.notify(OUTBOX)

    await walk.new()


async def replayable(walk: Walk) -> Callable[[], Awaitable[object]]:
    task = await walk.failed()
    return lambda: walk.ledger.tasks.replay(Caller(), task.id, 1, "again")


async def retryable(walk: Walk) -> Callable[[], Awaitable[object]]:
    task = await walk.undeliverable()
    [*_, row] = await walk.rows(task.id)
    return lambda: walk.ledger.outbox.retry(Caller(), row.id)


async def interruptible(walk: Walk) -> Callable[[], Awaitable[object]]:
    run = await walk.running()
    return lambda: walk.ledger.runs.record([builders.interrupted(run)])


async def released(walk: Walk) -> Callable[[], Awaitable[object]]:
    run = await walk.running()
    return lambda: walk.ledger.runs.release([run.reference], walk.worker_id)


async def lost(walk: Walk) -> Callable[[], Awaitable[object]]:
    await walk.tries_to_claim(reference(await walk.pending()))
    return lambda: walk.ledger.upkeep.rescue(10, LEASE_SECONDS)


async def submitted(walk: Walk) -> Callable[[], Awaitable[object]]:
    return lambda: walk.submit(builders.submission())


@pytest.mark.parametrize("act", [submitted, replayable, retryable, interruptible, released, lost])
async def test_relays_are_woken_by_what_is_due(
    ledger: Ledger, walk: Walk, act: Callable[[Walk], Awaitable[Callable[[], Awaitable[object]]]]
) -> None:
    call = await act(walk)
    async with listening(ledger, OUTBOX) as subscriber:
        await call()
        await woken(subscriber)


async def done(walk: Walk) -> Callable[[], Awaitable[object]]:
    run = await walk.running()
    return lambda: walk.ledger.runs.record([builders.done(run)])


async def dead(walk: Walk) -> Callable[[], Awaitable[object]]:
    run = await walk.running()
    return lambda: walk.ledger.runs.record([builders.dead(run)])


async def cancellable(walk: Walk) -> Callable[[], Awaitable[object]]:
    task = await walk.pending()
    return lambda: walk.ledger.tasks.cancel(Caller(), task.id)


async def undeliverable(walk: Walk) -> Callable[[], Awaitable[object]]:
    row = await walk.leased((await walk.new()).id)
    return lambda: walk.ledger.outbox.returned([row.id], "no queue", 1, 0.0)


@pytest.mark.parametrize("act", [done, dead, cancellable, undeliverable])
async def test_waiting_clients_are_woken_by_what_has_ended(
    ledger: Ledger, walk: Walk, act: Callable[[Walk], Awaitable[Callable[[], Awaitable[object]]]]
) -> None:
    call = await act(walk)
    async with listening(ledger, DONE) as subscriber:
        await call()
        await woken(subscriber)


async def test_the_ledger_is_ready_and_tells_its_clock(ledger: Ledger) -> None:
    await ledger.ready()

    assert abs(await ledger.clock_offset_seconds()) < 60
