"""Runs the handler; the one place that catches what user code raises, and turns it into a value."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from pipeline.flow import Stage
from pipeline.handlers import Permanent, RetryLater
from pipeline.handlers.context import Context
from pipeline.handlers.errors import ChildKilled, NotStarted, describe
from pipeline.slots import Stop
from storage.model import Cancelled, Done, Failure, Interrupted, Reason, Run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.handlers.definition import Handler
    from pipeline.handlers.runners import Runners
    from pipeline.slots import Slots

log = structlog.get_logger()

UNWIND_SECONDS = 5.0
"""How long a cancelled handler may take to clean up before its slot is given to another run."""

NOT_STARTED_SECONDS = 5.0
"""How long a task waits when no process or thread could be had for its handler."""

LOSSES_UNTIL_ALONE = 2
"""A task that was running when this many workers died runs in a process of its own from then on."""


class Failed(msgspec.Struct, frozen=True):
    """A run that did not succeed; what follows from it is decided by the stages after.

    `delay_seconds` is the delay that the handler itself asked for.
    """

    run: Run
    failure: Failure
    retryable: bool = True
    delay_seconds: float | None = None


Outcome = Done | Failed | Cancelled | Interrupted


class Execute(Stage[Run, Outcome]):
    """Runs a task's handler under its timeout; every way it can end is a value.

    A handler that ignores its cancellation is left behind after UNWIND_SECONDS: its outcome no longer
    counts, and its thread, if it has one, may overlap the next run of the task.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler[..., Any]],
        runners: Runners,
        slots: Slots,
        unwind_seconds: float = UNWIND_SECONDS,
    ) -> None:
        self._handlers = handlers
        self._runners = runners
        self._slots = slots
        self._unwind_seconds = unwind_seconds

    async def __call__(self, run: Run) -> Outcome:
        """Run one claimed task."""
        outcome = await self._run(run)
        self._slots.ended(run.reference)
        return outcome

    async def _run(self, run: Run) -> Outcome:
        alone = run.losses >= LOSSES_UNTIL_ALONE
        call = self._runners.run(self._handlers[run.kind], run.payload, Context.of(run), alone=alone)
        running = asyncio.create_task(call)
        try:
            in_time = await _ends_within(running, run.timeout_seconds)
            if not in_time:
                await self._unwind(run, running)
        except asyncio.CancelledError:
            return await self._stopped(run, running)
        if in_time:
            return _judge(run, running)
        failure = Failure("TimeoutError", f"not done after {run.timeout_seconds:g} s", Reason.TIMEOUT)
        return Failed(run, failure)

    async def _stopped(self, run: Run, running: asyncio.Future[str]) -> Outcome:
        await self._unwind(run, running)
        if running.done() and not running.cancelled() and running.exception() is None:
            return Done(run, running.result())
        return Cancelled(run) if self._slots.why(run.reference) is Stop.CANCELLED else Interrupted(run)

    async def _unwind(self, run: Run, running: asyncio.Future[str]) -> None:
        running.cancel()
        if not await _ends_within(running, self._unwind_seconds):
            log.warning("handler ignores its cancellation", task_id=str(run.task_id), kind=run.kind)


async def _ends_within(running: asyncio.Future[Any], seconds: float) -> bool:
    """Wait for a handler, and pass no cancellation on to it; `asyncio.wait` costs three times as much."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(_: asyncio.Future[Any] | None = None) -> None:
        if not over.done():
            over.set_result(None)

    timer = loop.call_later(seconds, end)
    running.add_done_callback(end)
    try:
        await over
    finally:
        timer.cancel()
        running.remove_done_callback(end)
    return running.done()


def _judge(run: Run, running: asyncio.Future[str]) -> Outcome:
    if running.cancelled():
        return Failed(run, Failure("CancelledError", "the handler cancelled itself"))
    error = running.exception()
    match error:
        case None:
            return Done(run, running.result())
        case RetryLater():
            return Failed(run, describe(error), delay_seconds=error.seconds)
        case NotStarted():
            # Nothing of the task has run: it is not to blame, and may find a child elsewhere.
            return Failed(run, describe(error), delay_seconds=NOT_STARTED_SECONDS)
        case Permanent() | ChildKilled():
            return Failed(run, describe(error), retryable=False)
        case _:
            return Failed(run, describe(error))
