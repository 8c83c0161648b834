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
    from collections.abc import Callable, Mapping

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


class Execution:
    """A handler under way: `ended` is called once, with the outcome, whichever way it comes about.

    Callbacks and no task of its own: a second task for each run cost as much as all else of a short one.
    """

    __slots__ = (
        "_ended",
        "_handler",
        "_loop",
        "_run",
        "_slots",
        "_stopped",
        "_timed_out",
        "_timer",
        "_unwind_seconds",
    )

    def __init__(
        self,
        run: Run,
        handler: asyncio.Task[str],
        slots: Slots,
        ended: Callable[[Outcome], None],
        unwind_seconds: float,
    ) -> None:
        self._loop = handler.get_loop()
        self._run = run
        self._handler = handler
        self._slots = slots
        self._ended: Callable[[Outcome], None] | None = ended
        self._unwind_seconds = unwind_seconds
        self._timed_out = self._stopped = False
        self._timer = self._loop.call_later(run.timeout_seconds, self._time_out)
        handler.add_done_callback(self._done)

    def cancel(self) -> None:
        """Stop the run: it is Cancelled or Interrupted, as the slots say why, unless it got done."""
        self._stopped = True
        self._unwind()

    def _time_out(self) -> None:
        self._timed_out = True
        self._unwind()

    def _unwind(self) -> None:
        self._timer.cancel()
        self._handler.cancel()
        self._timer = self._loop.call_later(self._unwind_seconds, self._leave_behind)

    def _leave_behind(self) -> None:
        log.warning("handler ignores its cancellation", task_id=str(self._run.task_id), kind=self._run.kind)
        self._end()

    def _done(self, handler: asyncio.Task[str]) -> None:
        if not handler.cancelled():
            handler.exception()  # seen: asyncio complains of one that nobody has asked for
        self._end()

    def _end(self) -> None:
        self._timer.cancel()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            self._slots.ended(self._run.reference)
            ended(self._outcome())

    def _outcome(self) -> Outcome:
        run, handler = self._run, self._handler
        if self._stopped:
            if handler.done() and not handler.cancelled() and handler.exception() is None:
                return Done(run, handler.result())
            why = self._slots.why(run.reference)
            return Cancelled(run) if why is Stop.CANCELLED else Interrupted(run)
        if self._timed_out:
            message = f"not done after {run.timeout_seconds:g} s"
            return Failed(run, Failure("TimeoutError", message, Reason.TIMEOUT))
        return _judge(run, handler)


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
        """Run one claimed task; cancelling the call stops the run, whose outcome it still returns."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        execution = self.start(run, outcome.set_result)
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            execution.cancel()
            return await outcome

    def start(self, run: Run, ended: Callable[[Outcome], None]) -> Execution:
        """Start one claimed task; `ended` hears its outcome."""
        alone = run.losses >= LOSSES_UNTIL_ALONE
        call = self._runners.run(self._handlers[run.kind], run.payload, Context.of(run), alone=alone)
        handler = asyncio.get_running_loop().create_task(call)
        return Execution(run, handler, self._slots, ended, self._unwind_seconds)


def _judge(run: Run, handler: asyncio.Task[str]) -> Outcome:
    if handler.cancelled():
        return Failed(run, Failure("CancelledError", "the handler cancelled itself"))
    error = handler.exception()
    match error:
        case None:
            return Done(run, handler.result())
        case RetryLater():
            return Failed(run, describe(error), delay_seconds=error.seconds)
        case NotStarted():
            # Nothing of the task has run: it is not to blame, and may find a child elsewhere.
            return Failed(run, describe(error), delay_seconds=NOT_STARTED_SECONDS)
        case Permanent() | ChildKilled():
            return Failed(run, describe(error), retryable=False)
        case _:
            return Failed(run, describe(error))
