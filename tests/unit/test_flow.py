"""The driver of stages: items in order, settled once, drained in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import pytest
from structlog.testing import capture_logs

from pipeline.flow import Flow, Parcel, Stage, flow, unless
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence


class Numbers:
    """A source of a few numbers; what came of each is in `settled`."""

    def __init__(self, *numbers: int, failing: Sequence[BaseException] = ()) -> None:
        self._numbers = list(numbers)
        self._failing = list(failing)
        self.pulls = 0
        self.settled: list[tuple[int, str]] = []
        self.quiet = asyncio.Event()
        self.left = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.left = True

    async def pull(self) -> Parcel[int] | None:
        self.pulls += 1
        if self.quiet.is_set():
            return None
        if self._failing:
            raise self._failing.pop()
        if self._numbers:
            number = self._numbers.pop(0)
            return Parcel(number, lambda failure: self._settle(number, failure))
        await self.quiet.wait()
        return None

    async def _settle(self, number: int, failure: BaseException | None) -> None:
        self.settled.append((number, type(failure).__name__))

    async def quiesce(self) -> None:
        self.quiet.set()


class Add(Stage[int, int]):
    def __init__(self, amount: int) -> None:
        self._amount = amount

    async def __call__(self, item: int) -> int:
        return item + self._amount


class Collect(Stage[int, None]):
    def __init__(self) -> None:
        self.items: list[int] = []

    async def __call__(self, item: int) -> None:
        if item < 0:
            raise ValueError("negative")
        self.items.append(item)


async def run_until_settled(source: Numbers, count: int, *stages: Stage[int, Any]) -> None:
    carrying: Flow[int, Any] = flow(source)
    for stage in stages:
        carrying |= stage
    stop = asyncio.Event()
    running = asyncio.create_task(carrying.run(stop, 1.0))
    await eventually(lambda: len(source.settled) == count)
    stop.set()
    await running


async def test_stages_are_called_in_order() -> None:
    collect = Collect()
    await (Add(1) | Add(10) | collect)(5)
    assert collect.items == [16]


async def test_items_are_carried_and_settled() -> None:
    source, collect = Numbers(1, 2, 3), Collect()
    await run_until_settled(source, 3, Add(1), collect)
    assert collect.items == [2, 3, 4]
    assert source.settled == [(1, "NoneType"), (2, "NoneType"), (3, "NoneType")]
    assert source.left


async def test_an_item_that_fails_is_given_back_and_the_next_is_carried() -> None:
    source, collect = Numbers(-5, 2), Collect()
    await run_until_settled(source, 2, collect)
    assert source.settled == [(-5, "ValueError"), (2, "NoneType")]


async def test_a_source_that_fails_is_asked_again() -> None:
    source = Numbers(1, failing=[ConnectionError("away")])
    await run_until_settled(source, 1, Collect())
    assert source.settled == [(1, "NoneType")]


async def test_a_parcel_is_settled_once() -> None:
    settled = []

    async def settle(failure: BaseException | None) -> None:
        settled.append(failure)

    parcel = Parcel("x", settle)
    await parcel.settle(None)
    await parcel.settle(ValueError())
    assert settled == [None]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_more_items_are_under_way_than_allowed(concurrency: int) -> None:
    under_way, most, go = 0, 0, asyncio.Event()

    class Hold(Stage[int, None]):
        async def __call__(self, _item: int) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await go.wait()
            under_way -= 1

    source, stop = Numbers(*range(6)), asyncio.Event()
    running = asyncio.create_task((flow(source, concurrency) | Hold()).run(stop, 1.0))
    await eventually(lambda: under_way == concurrency)
    go.set()
    await eventually(lambda: len(source.settled) == 6)
    stop.set()
    await running
    assert most == concurrency


async def test_an_item_that_outlasts_the_grace_is_left_unsettled_and_the_flow_ends() -> None:
    entered = asyncio.Event()

    class Stuck(Stage[int, None]):
        async def __call__(self, _item: int) -> None:
            entered.set()
            await asyncio.Event().wait()

    source, stop = Numbers(1), asyncio.Event()
    running = asyncio.create_task((flow(source, 2) | Stuck()).run(stop, 0.05))
    await entered.wait()
    stop.set()
    async with asyncio.timeout(5):
        await running
    assert source.settled == []
    assert source.left


async def test_a_stage_that_works_on_is_drained_after_the_source_is_quiet() -> None:
    order: list[str] = []

    class Later(Stage[int, None]):
        async def __call__(self, _item: int) -> None:
            order.append("item")

        async def drain(self, grace_seconds: float) -> None:
            assert grace_seconds <= 1.0
            order.append("drained")

    class Quiet(Numbers):
        async def quiesce(self) -> None:
            await super().quiesce()
            await asyncio.sleep(0)
            order.append("quiet")

    source, stop = Quiet(1), asyncio.Event()
    running = asyncio.create_task((flow(source) | Later()).run(stop, 1.0))
    await eventually(lambda: source.settled)
    stop.set()
    await running
    assert order == ["item", "quiet", "drained"]


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_flow_whose_places_are_all_taken_drains_within_the_grace(concurrency: int) -> None:
    entered: list[int] = []

    class Stuck(Stage[int, None]):
        async def __call__(self, item: int) -> None:
            entered.append(item)
            await asyncio.Event().wait()

    class SlowToQuiesce(Numbers):
        async def quiesce(self) -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            await super().quiesce()

    source, stop = SlowToQuiesce(1, 2, 3), asyncio.Event()
    running = asyncio.create_task((flow(source, concurrency) | Stuck()).run(stop, 0.05))
    await eventually(lambda: len(entered) == concurrency)
    stop.set()
    async with asyncio.timeout(2):
        await running
    assert (len(entered), source.settled, source.left) == (concurrency, [], True)


async def test_a_cancelled_error_of_a_stage_gives_the_item_back_and_ends_nothing() -> None:
    class Cancelled(Stage[int, None]):
        async def __call__(self, item: int) -> None:
            if item == 1:
                raise asyncio.CancelledError

    source = Numbers(1, 2)
    await run_until_settled(source, 2, Cancelled())
    assert source.settled == [(1, "CancelledError"), (2, "NoneType")]


async def test_a_cancelled_error_of_the_source_is_a_failure_like_any_other() -> None:
    source = Numbers(1, failing=[asyncio.CancelledError()])
    await run_until_settled(source, 1, Collect())
    assert source.settled == [(1, "NoneType")]


async def test_a_source_that_goes_on_failing_does_not_hold_up_the_drain() -> None:
    source, stop = Numbers(failing=[ConnectionError("away")] * 1000), asyncio.Event()
    running = asyncio.create_task((flow(source) | Collect()).run(stop, 1.0))
    await eventually(lambda: source.pulls >= 3)
    stop.set()
    async with asyncio.timeout(0.2):
        await running
    assert source.left


async def test_a_source_that_cannot_be_quieted_breaks_off_nothing_that_is_carried() -> None:
    class Stuck(Numbers):
        async def quiesce(self) -> None:
            self.quiet.set()
            raise ConnectionError("away")

    source, collect, stop, go_on = Stuck(1), Collect(), asyncio.Event(), asyncio.Event()
    began = asyncio.Event()

    async def wait(item: int) -> int:
        began.set()
        await go_on.wait()
        return item

    running = asyncio.create_task((flow(source) | wait | collect).run(stop, 5.0))
    await began.wait()
    stop.set()
    await source.quiet.wait()
    go_on.set()
    await running
    assert (collect.items, source.settled) == ([1], [(1, "NoneType")])


async def test_an_item_that_cannot_be_settled_does_not_end_the_flow() -> None:
    class Unsettled(Numbers):
        async def _settle(self, number: int, failure: BaseException | None) -> None:
            await super()._settle(number, failure)
            if number == 1:
                raise ConnectionError("away")

    source, collect = Unsettled(1, 2), Collect()
    await run_until_settled(source, 2, collect)
    assert collect.items == [1, 2]


async def test_an_item_whose_settling_the_driver_breaks_off_is_told_of() -> None:
    class BrokenOff(Numbers):
        async def _settle(self, number: int, failure: BaseException | None) -> None:
            await super()._settle(number, failure)
            raise asyncio.CancelledError

    with capture_logs() as logs:
        await run_until_settled(BrokenOff(1), 1, Collect())
    assert [line["event"] for line in logs] == ["not settled; it will come again"]


async def test_a_stage_that_settles_has_the_last_word() -> None:
    settled: list[BaseException | None] = []

    async def settle(failure: BaseException | None) -> None:
        settled.append(failure)

    class Once(Numbers):
        async def pull(self) -> Parcel[int] | None:
            return parcel if await super().pull() else None

    class SettleAndFail(Stage[int, None]):
        async def __call__(self, _item: int) -> None:
            await parcel.settle(None)
            raise ValueError("too late")

    source, stop, parcel = Once(1), asyncio.Event(), Parcel(1, settle)
    running = asyncio.create_task((flow(source) | SettleAndFail()).run(stop, 1.0))
    await eventually(lambda: settled)
    stop.set()
    await running
    assert settled == [None]


async def test_an_item_pulled_while_the_flow_is_told_to_stop_is_carried() -> None:
    class Slow(Numbers):
        async def pull(self) -> Parcel[int] | None:
            parcel = await super().pull()
            if parcel:
                stop.set()
                await self.quiet.wait()
            return parcel

    source, stop, collect = Slow(1), asyncio.Event(), Collect()
    async with asyncio.timeout(2):
        await (flow(source) | collect).run(stop, 1.0)
    assert (collect.items, source.settled) == ([1], [(1, "NoneType")])


async def test_no_task_outlives_a_flow() -> None:
    class Stuck(Stage[int, None]):
        async def __call__(self, _item: int) -> None:
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    source, stop = Numbers(1, 2), asyncio.Event()
    running = asyncio.create_task((flow(source, 3) | Stuck()).run(stop, 0.0))
    await eventually(lambda: source.pulls == 3)
    stop.set()
    await running
    assert asyncio.all_tasks() == before


async def test_waiting_unless_told_to_stop() -> None:
    async def fail() -> None:
        raise ConnectionError("away")

    stop, before = asyncio.Event(), asyncio.all_tasks()
    await unless(stop, asyncio.sleep(0))
    with pytest.raises(ConnectionError):
        await unless(stop, fail())
    stop.set()
    await unless(stop, asyncio.Event().wait())
    await eventually(lambda: asyncio.all_tasks() == before)
