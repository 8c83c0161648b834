"""Where handlers run: on the event loop, in threads, in child processes.

Runners know no timeout. Whoever waits for one too long cancels it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.handlers.children import InChild
from pipeline.handlers.definition import Mode
from pipeline.handlers.errors import NotStarted, tell
from storage.cancellation import cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.handlers.context import Context
    from pipeline.handlers.definition import Handler
    from pipeline.handlers.registry import Handlers

Outcome = str | BaseException


class Runner(Protocol):
    """Runs a handler once."""

    async def run(self, handler: Handler[..., Any], payload: bytes, context: Context) -> str:
        """Return the result as JSON text.

        Raises what the handler raised, PayloadInvalid, ResultInvalid, ChildKilled or NotStarted: always an
        Exception, and CancelledError only when the call itself was cancelled.
        """


class OnLoop:
    """Runs async handlers where they are called; a cancellation goes to the handler."""

    async def run(self, handler: Handler[..., Any], payload: bytes, context: Context) -> str:
        """Run to the end, or until cancelled."""
        value = handler.decode(payload)
        try:
            result = await handler.invoke(value, context)
        except (Exception, KeyboardInterrupt, GeneratorExit):
            raise
        except asyncio.CancelledError as error:
            if cancelled():
                raise
            raise _escaped(error) from error
        except BaseException as error:
            raise _escaped(error) from error
        return handler.encode(result)


class InThread:
    """Runs sync handlers in daemon threads, started when needed and used again.

    A cancelled call returns at once and leaves its thread, for a thread cannot be stopped: the handler
    runs on and may overlap the task's next run. A thread left behind ends with its handler.
    All state belongs to the event loop, so nothing here needs a lock.
    """

    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._idle: list[_Thread] = []

    async def run(self, handler: Handler[..., Any], payload: bytes, context: Context) -> str:
        """Run to the end, with a copy of the caller's context variables, or leave the thread."""
        async with self._slots:
            thread = self._idle.pop() if self._idle else _Thread.begin()
            call = contextvars.copy_context().run
            outcome = thread.submit(lambda: call(run_sync, handler, payload, context))
            try:
                answer = await asyncio.wrap_future(outcome)
            except asyncio.CancelledError:
                thread.end()
                raise
            self._idle.append(thread)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """Let idle threads end; those left behind end with the process at the latest."""
        while self._idle:
            self._idle.pop().end()


class Runners:
    """All runners of a worker: each handler in its mode, or alone in a child process of its own.

    Child processes log in the given format, from the given level upwards.
    """

    def __init__(
        self, slots: int, handlers: Handlers, *, log_format: str = "auto", log_level: str = "info"
    ) -> None:
        self._threads = InThread(slots)
        self._children = InChild(
            slots,
            handlers.modules,
            http_allow_private_addresses=handlers.http_allow_private_addresses,
            log_format=log_format,
            log_level=log_level,
        )
        self._by_mode: dict[Mode, Runner] = {
            Mode.ASYNC: OnLoop(),
            Mode.THREAD: self._threads,
            Mode.PROCESS: self._children,
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._threads.close()
        await self._children.close()

    async def run(
        self, handler: Handler[..., Any], payload: bytes, context: Context, *, alone: bool = False
    ) -> str:
        """Run a handler as `Runner.run` does; `alone` keeps what kills a process from killing this one."""
        if alone:
            return await self._children.run_alone(handler, payload, context)
        return await self._by_mode[handler.policy.mode].run(handler, payload, context)


def run_sync(handler: Handler[..., Any], payload: bytes, context: Context) -> Outcome:
    """Run a sync handler here; what it raises is returned, because no future takes every exception.

    (A StopIteration set on an asyncio future would leave the waiter waiting for ever.)
    """
    try:
        return handler.encode(handler.invoke(handler.decode(payload), context))
    except Exception as error:  # noqa: BLE001 - user code
        return error
    except BaseException as error:  # noqa: BLE001 - user code, sys.exit() for one, ends the run and no more
        escaped = _escaped(error)
        escaped.__cause__ = error
        return escaped


def _escaped(error: BaseException) -> RuntimeError:
    """Turn what would end the worker, or look like a cancellation, into an ordinary failure."""
    return RuntimeError(f"the handler raised {tell(error)}")


class _Thread(threading.Thread):
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        super().__init__(name="handler", daemon=True)
        self._calls: SimpleQueue[tuple[Future[Outcome], Callable[[], Outcome]] | None] = SimpleQueue()

    @classmethod
    def begin(cls) -> Self:
        """Start one; raises NotStarted where the system gives no more."""
        thread = cls()
        try:
            thread.start()
        except RuntimeError as error:
            raise NotStarted(f"no thread for the handler: {error}") from error
        return thread

    def submit(self, call: Callable[[], Outcome]) -> Future[Outcome]:
        """Queue a call; cancelling the future before the call starts prevents it."""
        future: Future[Outcome] = Future()
        self._calls.put((future, call))
        return future

    def end(self) -> None:
        """End after the present call."""
        self._calls.put(None)

    def run(self) -> None:
        """Make calls until told to end."""
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                future.set_result(call())
            del item, future, call  # an idle thread holds no payload
