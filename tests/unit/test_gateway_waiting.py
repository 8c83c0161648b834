"""Waiting for tasks to end: prompt, bounded, and cheap however many wait."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gateway.deadline import Deadline
from gateway.problems import Problem
from gateway.waiting import MOST_ENDED, POLL_SECONDS, Waiting
from pipeline.testing.ledger.signals import MemorySubscriber
from storage.channels import DONE
from storage.errors import Overloaded, Unavailable
from storage.model import Caller, Reference, Status, Task
from tests.support.builders import done, submission
from tests.support.gateway import TASKS, WORKER_ID, Gateway, Hands, gateway, problem
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from pipeline.testing import ManualClock


class Deaf:
    """Signals that never arrive."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def notify(self, channel: str) -> None:
        """Lose it."""

    @asynccontextmanager
    async def subscribe(self, _channel: str) -> AsyncIterator[MemorySubscriber]:
        yield MemorySubscriber(self._clock)


class Spied:
    """A ledger's tasks; counts the looks at ends, and fails them first where it is told to."""

    def __init__(self, ledger: Hands, failures: Sequence[Exception] = ()) -> None:
        self._tasks = ledger.tasks
        self._failures = list(failures)
        self.looks: list[int] = []

    async def ended(self, task_ids: Sequence[UUID], most: int) -> dict[UUID, Task]:
        self.looks.append(len(task_ids))
        if self._failures:
            raise self._failures.pop(0)
        return await self._tasks.ended(task_ids, most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tasks, name)


async def never() -> Any:
    await asyncio.Event().wait()


async def end(ledger: Hands, *task_ids: UUID) -> None:
    """Let a worker complete tasks, all in one statement."""
    tasks = [await ledger.tasks.get(Caller(), each) for each in task_ids]
    references = [Reference(task.id, task.dispatch) for task in tasks if task]
    runs = await ledger.runs.claim(references, WORKER_ID, ["echo"])
    await ledger.runs.record([done(run) for run in runs])


async def submitted(ledger: Hands, count: int) -> list[UUID]:
    answers = await ledger.submissions.submit([submission() for _ in range(count)])
    return [answer.task_id for answer in answers]


def room(ledger: Hands, most_waiters: int = 10_000) -> Waiting:
    return Waiting(ledger.tasks, ledger.signals, Deadline(5.0), most_waiters, linger_seconds=0.0)


async def test_a_thousand_waiters_cost_no_look_of_their_own() -> None:
    ledger = Hands()
    spied = Spied(ledger)
    waiting = Waiting(spied, ledger.signals, Deadline(5.0))
    ids = await submitted(ledger, 1_000)

    async def wait(task_id: UUID) -> None:
        with waiting.watch(task_id) as watch:
            task = await watch.wait(30.0, never)
            assert task is not None
            assert (task.id, task.status, task.result) == (task_id, Status.COMPLETED, b"null")

    async with asyncio.TaskGroup() as group:
        for task_id in ids:
            group.create_task(wait(task_id))
        await eventually(lambda: spied.looks)
        first = len(spied.looks)
        await asyncio.sleep(0.05)
        assert len(spied.looks) == first  # nobody looks while nothing happens
        await end(ledger, *ids)

    assert spied.looks[first:] == list(range(1_000, 0, -MOST_ENDED))


async def test_a_wake_up_that_is_lost_is_made_up_for_by_the_next_poll() -> None:
    ledger = Hands()
    ledger.signals = Deaf(ledger.clock)  # type: ignore[assignment]  # the same port
    waiting = room(ledger)
    [task_id] = await submitted(ledger, 1)

    with waiting.watch(task_id) as watch:
        waiter = asyncio.create_task(watch.wait(30.0, never))
        await asyncio.sleep(0.05)
        await end(ledger, task_id)
        await asyncio.sleep(0.05)
        assert not waiter.done()
        await eventually(lambda: ledger.clock._sleepers)
        await ledger.clock.advance(POLL_SECONDS)
        await asyncio.wait_for(waiter, 5.0)


async def test_an_end_before_the_subscription_is_seen() -> None:
    ledger = Hands()
    ledger.signals = Deaf(ledger.clock)  # type: ignore[assignment]  # the same port
    [task_id] = await submitted(ledger, 1)

    with room(ledger).watch(task_id) as watch:
        await end(ledger, task_id)  # after the watch was begun, before the loop has looked
        await asyncio.wait_for(watch.wait(30.0, never), 5.0)


async def test_it_listens_only_while_somebody_waits() -> None:
    ledger = Hands()
    waiting = room(ledger)
    [task_id] = await submitted(ledger, 1)
    listeners = ledger.signals._subscribers[DONE]

    assert not listeners
    with waiting.watch(task_id):
        await eventually(lambda: len(listeners) == 1)
    ledger.signals.notify(DONE)
    await eventually(lambda: not listeners)

    with waiting.watch(task_id) as watch:
        waiter = asyncio.create_task(watch.wait(30.0, never))
        await eventually(lambda: len(listeners) == 1)
        await end(ledger, task_id)
        await asyncio.wait_for(waiter, 5.0)


async def test_it_listens_on_for_a_while_when_the_last_one_has_left() -> None:
    ledger = Hands()
    waiting = Waiting(ledger.tasks, ledger.signals, Deadline(5.0))
    first, second = await submitted(ledger, 2)
    listeners = ledger.signals._subscribers[DONE]

    async def wait(task_id: UUID) -> None:
        with waiting.watch(task_id) as watch:
            waiter = asyncio.create_task(watch.wait(30.0, never))
            await eventually(lambda: len(listeners) == 1)
            await end(ledger, task_id)
            await asyncio.wait_for(waiter, 5.0)

    await wait(first)
    [kept] = listeners
    ledger.signals.notify(DONE)
    await asyncio.sleep(0.05)
    await wait(second)
    assert listeners == {kept}

    waiting.release()
    ledger.signals.notify(DONE)
    await eventually(lambda: not listeners)


async def test_who_comes_while_the_last_subscription_closes_is_served() -> None:
    ledger = Hands()
    closing, closed = asyncio.Event(), asyncio.Event()

    class SlowToClose(Deaf):
        @asynccontextmanager
        async def subscribe(self, channel: str) -> AsyncIterator[MemorySubscriber]:
            async with super().subscribe(channel) as subscriber:
                subscriber.wake()
                yield subscriber
            closing.set()
            await closed.wait()

    waiting = Waiting(ledger.tasks, SlowToClose(ledger.clock), Deadline(5.0), linger_seconds=0.0)
    [task_id] = await submitted(ledger, 1)
    with waiting.watch(task_id):
        await asyncio.sleep(0)
    await asyncio.wait_for(closing.wait(), 5.0)

    with waiting.watch(task_id) as watch:
        await end(ledger, task_id)
        closed.set()
        await asyncio.wait_for(watch.wait(30.0, never), 5.0)


async def test_a_look_that_fails_is_repeated() -> None:
    ledger = Hands()
    spied = Spied(ledger, [Unavailable("connection refused")])
    waiting = Waiting(spied, ledger.signals, Deadline(5.0))
    [task_id] = await submitted(ledger, 1)

    with waiting.watch(task_id) as watch:
        waiter = asyncio.create_task(watch.wait(30.0, never))
        await eventually(lambda: spied.looks)
        await end(ledger, task_id)
        await asyncio.wait_for(waiter, 5.0)


async def test_the_room_is_bounded() -> None:
    ledger = Hands()
    waiting = room(ledger, most_waiters=2)
    [task_id] = await submitted(ledger, 1)

    with waiting.watch(task_id), waiting.watch(task_id):
        with pytest.raises(Overloaded), waiting.watch(task_id):
            pass
        assert len(waiting) == 2
    with waiting.watch(task_id):
        assert len(waiting) == 1


async def test_a_release_lets_everybody_go_now_and_later() -> None:
    ledger = Hands()
    waiting = room(ledger)
    [task_id] = await submitted(ledger, 1)

    with waiting.watch(task_id) as watch:
        waiter = asyncio.create_task(watch.wait(30.0, never))
        await asyncio.sleep(0)
        waiting.release()
        await asyncio.wait_for(waiter, 5.0)
    with waiting.watch(task_id) as late:
        await asyncio.wait_for(late.wait(30.0, never), 5.0)


async def test_a_client_that_leaves_waits_no_longer() -> None:
    ledger = Hands()
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]
    [task_id] = await submitted(ledger, 1)

    async def receive() -> Any:
        return messages.pop(0)

    with room(ledger).watch(task_id) as watch, pytest.raises(Problem, match="nobody waits"):
        await watch.wait(30.0, receive)


class TestOverHttp:
    @pytest_asyncio.fixture
    async def api(self) -> AsyncIterator[Gateway]:
        async with gateway() as opened:
            yield opened

    @pytest.mark.parametrize("path", ["", "/status"])
    async def test_get_answers_as_soon_as_the_task_has_ended(self, api: Gateway, path: str) -> None:
        task = await api.submit()
        async with asyncio.TaskGroup() as group:
            getting = group.create_task(api.client.get(f"{TASKS}/{task['id']}{path}?wait=60"))
            await eventually(lambda: len(api.waiting) == 1)
            await api.complete(task, '{"sum":3}')

        assert getting.result().json()["status"] == "COMPLETED"
        assert getting.result().json().get("result", {"sum": 3}) == {"sum": 3}
        assert len(api.waiting) == 0

    @pytest.mark.parametrize("path", ["", "/status"])
    async def test_get_answers_when_the_time_is_up(self, api: Gateway, path: str) -> None:
        task = await api.submit()

        response = await api.client.get(f"{TASKS}/{task['id']}{path}?wait=0.05")

        assert (response.status_code, response.json()["status"]) == (200, "NEW")

    @pytest.mark.parametrize("path", ["", "/status"])
    async def test_get_of_an_ended_task_does_not_wait(self, api: Gateway, path: str) -> None:
        task = await api.submit()
        await api.complete(task)

        async with asyncio.timeout(5.0):
            response = await api.client.get(f"{TASKS}/{task['id']}{path}?wait=60")

        assert response.json()["status"] == "COMPLETED"

    async def test_an_ended_task_is_read_once_and_not_looked_for(self) -> None:
        ledger = Hands()
        ledger.tasks = Spied(ledger, [Unavailable("away")] * 1_000)  # type: ignore[assignment]  # the same port
        async with gateway(ledger) as api, asyncio.timeout(5.0):
            task = await api.submit()
            await api.complete(task)
            response = await api.client.get(f"{TASKS}/{task['id']}?wait=60")

        assert response.json()["status"] == "COMPLETED"

    async def test_post_answers_with_the_outcome(self, api: Gateway) -> None:
        async with asyncio.TaskGroup() as group:
            posting = group.create_task(api.client.post(f"{TASKS}?wait=60", json={"kind": "echo"}))
            await eventually(lambda: len(api.waiting) == 1 and api.ledger._state.tasks)
            [task_id] = api.ledger._state.tasks
            await end(api.ledger, task_id)

        response = posting.result()
        assert response.status_code == 201
        assert response.json()["status"] == "COMPLETED"
        assert response.json()["result"] is None
        assert response.headers["location"] == f"{TASKS}/{task_id}"

    async def test_post_answers_when_the_time_is_up(self, api: Gateway) -> None:
        response = await api.client.post(f"{TASKS}?wait=0.05", json={"kind": "echo"})

        assert (response.status_code, response.json()["status"]) == (201, "NEW")

    async def test_a_full_room_answers_503(self, api: Gateway) -> None:
        task = await api.submit()
        api.waiting._most_waiters = 0

        for path in ("?wait=1", "/status?wait=1"):
            response = await api.client.get(f"{TASKS}/{task['id']}{path}")
            assert problem(response) == (503, "overloaded")
            assert int(response.headers["retry-after"]) > 0

    async def test_a_client_that_hangs_up_frees_its_place(self, api: Gateway) -> None:
        task = await api.submit()

        answer = await api.send(method="GET", path=f"{TASKS}/{task['id']}", query=b"wait=60", hangs_up=True)

        assert problem(answer) == (499, "client-gone")
        assert len(api.waiting) == 0
