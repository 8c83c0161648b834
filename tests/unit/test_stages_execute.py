"""From a claimed run to its verdict: every way a handler can end is a value."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.handlers import Permanent, RetryLater, handler
from pipeline.handlers.errors import ChildKilled, NotStarted
from pipeline.handlers.registry import Handlers
from pipeline.handlers.runners import Runners
from pipeline.slots import Slots, Stop
from pipeline.stages import DeadLetter, Execute, Failed, RouteRetry
from storage.model import Cancelled, Dead, Done, Interrupted, Priority, Reason, Retry
from tests.support.builders import failure, run

if TYPE_CHECKING:
    from storage.model import Run


class Scene:
    """What a handler that is being stopped does, seen from outside."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.asked_to_stop = asyncio.Event()
        self.may_end = asyncio.Event()

    def handlers(self) -> Handlers:
        """Handlers that wait, end well although cancelled, ignore that, or take their time over it."""

        @handler("test.wait")
        async def wait(_payload: Any) -> None:
            self.started.set()
            await asyncio.Event().wait()

        @handler("test.finish")
        async def finish(_payload: Any) -> str:
            self.started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "done"
            return "never"

        @handler("test.ignore")
        async def ignore(_payload: Any) -> str:
            self.started.set()
            while not self.may_end.is_set():
                try:
                    await self.may_end.wait()
                except asyncio.CancelledError:
                    self.asked_to_stop.set()
            return "too late"

        @handler("test.unwind")
        async def unwind(_payload: Any) -> None:
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.asked_to_stop.set()
                await self.may_end.wait()

        return Handlers([wait, finish, ignore, unwind])


@handler("test.return")
async def returns(payload: Any) -> Any:
    return payload


@handler("test.raise")
async def raises(_payload: Any) -> None:
    raise ValueError("as asked")


@handler("test.permanent")
async def permanent(_payload: Any) -> None:
    raise Permanent("never")


@handler("test.later")
async def later(_payload: Any) -> None:
    raise RetryLater(7.5)


@handler("test.killed")
async def killed(_payload: Any) -> None:
    raise ChildKilled(-9)


@handler("test.not_started")
async def not_started(_payload: Any) -> None:
    raise NotStarted("no process to be had")


@handler("test.cancelled")
async def cancels_itself(_payload: Any) -> None:
    raise asyncio.CancelledError


HANDLERS = Handlers([returns, raises, permanent, later, killed, not_started, cancels_itself])


async def execute(
    task: Run, slots: Slots | None = None, handlers: Handlers = HANDLERS, unwind_seconds: float = 5.0
) -> object:
    async with Runners(1, handlers) as runners:
        return await Execute(handlers, runners, slots or Slots(1), unwind_seconds)(task)


async def test_what_the_handler_returns_is_the_result() -> None:
    task = run(kind="test.return", payload=b'{"a":[1]}')
    assert await execute(task) == Done(task, '{"a":[1]}')


@pytest.mark.parametrize(
    ("kind", "retryable", "delay_seconds", "reason"),
    [
        ("test.raise", True, None, Reason.ERROR),
        ("test.permanent", False, None, Reason.ERROR),
        ("test.later", True, 7.5, Reason.ERROR),
        ("test.killed", False, None, Reason.KILLS_WORKER),
        ("test.not_started", True, 5.0, Reason.ERROR),
        ("test.cancelled", True, None, Reason.ERROR),
    ],
)
async def test_what_it_raises_is_a_value(
    kind: str, *, retryable: bool, delay_seconds: float | None, reason: Reason
) -> None:
    outcome = await execute(run(kind=kind))
    assert isinstance(outcome, Failed)
    assert (outcome.retryable, outcome.delay_seconds) == (retryable, delay_seconds)
    assert outcome.failure.reason is reason


@pytest.mark.parametrize("kind", ["test.wait", "test.finish"])
async def test_a_timeout_is_a_failure_whatever_the_handler_says_then(kind: str) -> None:
    outcome = await execute(run(kind=kind, timeout_seconds=0.01), handlers=Scene().handlers())
    assert isinstance(outcome, Failed)
    assert (outcome.failure.reason, outcome.retryable) == (Reason.TIMEOUT, True)


async def test_a_handler_that_ignores_its_cancellation_is_left_behind() -> None:
    scene = Scene()
    task = run(kind="test.ignore", timeout_seconds=0.01)
    outcome = await execute(task, handlers=scene.handlers(), unwind_seconds=0.01)
    assert isinstance(outcome, Failed)
    assert (outcome.failure.reason, scene.asked_to_stop.is_set()) == (Reason.TIMEOUT, True)
    scene.may_end.set()


@pytest.mark.parametrize(
    ("why", "kind", "verdict"),
    [
        (Stop.CANCELLED, "test.wait", Cancelled),
        (Stop.INTERRUPTED, "test.wait", Interrupted),
        (Stop.LOST, "test.wait", Interrupted),
        (Stop.CANCELLED, "test.ignore", Cancelled),
        (Stop.CANCELLED, "test.finish", Done),
        (Stop.INTERRUPTED, "test.finish", Done),
    ],
)
async def test_a_run_that_is_stopped_says_why_unless_it_got_done(why: Stop, kind: str, verdict: type) -> None:
    scene, slots, task = Scene(), Slots(1), run(kind=kind)
    slots.reserve(task.reference)
    executing = asyncio.create_task(execute(task, slots, scene.handlers(), unwind_seconds=0.01))
    slots.start(task, executing)
    await scene.started.wait()
    slots.stop(task.reference, why)
    assert isinstance(await executing, verdict)
    scene.may_end.set()


@pytest.mark.parametrize(("why", "verdict"), [(Stop.CANCELLED, Cancelled), (Stop.INTERRUPTED, Interrupted)])
async def test_a_run_that_is_stopped_while_it_unwinds_from_its_timeout_gets_a_verdict(
    why: Stop, verdict: type
) -> None:
    scene, slots, task = Scene(), Slots(1), run(kind="test.unwind", timeout_seconds=0.01)
    slots.reserve(task.reference)
    executing = asyncio.create_task(execute(task, slots, scene.handlers()))
    slots.start(task, executing)
    await scene.asked_to_stop.wait()
    slots.stop(task.reference, why)
    assert isinstance(await executing, verdict)


@pytest.mark.parametrize(
    ("attempt", "max_retries", "asked_seconds", "postponements", "expected"),
    [
        (1, 3, None, 0, ("tasks.medium.retry.5s", 5.0, False, True)),
        (2, 3, None, 0, ("tasks.medium.retry.30s", 30.0, False, True)),
        (3, 3, None, 0, ("tasks.medium.retry.30s", 30.0, False, True)),
        (4, 3, None, 0, None),
        (1, 0, None, 0, None),
        (1, 0, 7.5, 0, ("tasks.medium", 7.5, True, False)),
        (1, 0, 5.0, 0, ("tasks.medium.retry.5s", 5.0, False, False)),
        (1, 0, 7.5, 19, ("tasks.medium", 7.5, True, False)),
        (1, 1, 7.5, 20, ("tasks.medium", 7.5, True, True)),
        (1, 0, 7.5, 20, None),
    ],
)
async def test_route_retry(
    attempt: int,
    max_retries: int,
    asked_seconds: float | None,
    postponements: int,
    expected: tuple[str, float, bool, bool] | None,
) -> None:
    task = run(attempt=attempt, max_retries=max_retries, postponements=postponements)
    failed = Failed(task, failure(), delay_seconds=asked_seconds)
    verdict = await (RouteRetry((5, 30)) | DeadLetter())(failed)
    if expected is None:
        assert verdict == Dead(task, failed.failure)
    else:
        assert verdict == Retry(task, failed.failure, *expected)


async def test_a_retry_keeps_its_priority() -> None:
    verdict = await RouteRetry((5,))(Failed(run(priority=Priority.LOW), failure()))
    assert isinstance(verdict, Retry)
    assert verdict.route == "tasks.low.retry.5s"


async def test_what_is_final_is_not_routed() -> None:
    task = run()
    for outcome in (Failed(task, failure(), retryable=False), Done(task), Cancelled(task), Interrupted(task)):
        assert await RouteRetry()(outcome) is outcome
