import asyncio

from pipeline.clock import MonotonicClock
from pipeline.testing.clock import ManualClock


async def test_a_manual_clock_wakes_sleepers_in_the_order_of_their_deadlines() -> None:
    clock, woken = ManualClock(), list[tuple[str, float]]()

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 3.0), ("early", 1.0), ("also early", 1.0)):
            group.create_task(sleeper(name, seconds))
        await clock.advance(0.5)
        assert woken == []
        await clock.advance(2.5)

    assert woken == [("early", 1.0), ("also early", 1.0), ("late", 3.0)]
    assert clock.now() == 3.0


async def test_a_sleeper_may_sleep_again_within_one_advance() -> None:
    clock, ticks = ManualClock(), list[float]()

    async def ticker() -> None:
        while True:
            await clock.sleep(1)
            ticks.append(clock.now())

    ticking = asyncio.create_task(ticker())
    await clock.advance(3.5)
    ticking.cancel()

    assert ticks == [1.0, 2.0, 3.0]


async def test_a_cancelled_sleeper_is_left_out() -> None:
    clock = ManualClock()
    sleeping = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    sleeping.cancel()

    await clock.advance(2)

    assert sleeping.cancelled()


async def test_the_monotonic_clock_never_wakes_early() -> None:
    clock = MonotonicClock()
    started = clock.now()

    await clock.sleep(0.01)

    assert clock.now() - started >= 0.01
