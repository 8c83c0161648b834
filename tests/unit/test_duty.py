"""Whether a worker may start handlers: it counts half a lease, the janitor a whole one."""

from __future__ import annotations

import asyncio

from pipeline.duty import Duty
from pipeline.testing import ManualClock


async def test_a_worker_may_start_for_half_a_lease_from_when_its_heartbeat_was_sent() -> None:
    clock = ManualClock()
    duty = Duty(clock, lease_seconds=30)
    assert not duty.fresh
    sent_at = clock.now()
    await clock.advance(5)
    duty.heard(sent_at)
    await clock.advance(9.9)
    fresh = [duty.fresh]
    await clock.advance(0.2)
    fresh.append(duty.fresh)
    assert fresh == [True, False]


async def test_it_waits_for_a_heartbeat_that_is_young_enough() -> None:
    clock = ManualClock()
    duty = Duty(clock, lease_seconds=30)
    beginning = asyncio.create_task(duty.begin())
    await clock.advance(20)
    duty.heard(2.0)
    await clock.advance(0)
    assert not beginning.done()
    duty.heard(19.0)
    assert await beginning == duty.worker_id


async def test_a_worker_declared_dead_begins_anew_under_another_id() -> None:
    clock = ManualClock()
    duty = Duty(clock, lease_seconds=30)
    duty.heard(0.0)
    first = await duty.begin()
    duty.declared_dead()
    beginning = asyncio.create_task(duty.begin())
    await clock.advance(0)
    assert not beginning.done()
    duty.heard(0.0)
    assert await beginning != first
