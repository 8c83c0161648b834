"""Stages within one item, and the driver that carries items through them.

A stage is any `async (In) -> Out`. `a | b` calls b with what a returned; the types must fit. A `Flow`
pulls items from its source, carries each through its stages, settles it, and drains when it is stopped.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import structlog

from storage.backoff import backoff_seconds
from storage.cancellation import cancelled

if TYPE_CHECKING:
    from collections.abc import Sequence

log = structlog.get_logger()

In = TypeVar("In")
Out = TypeVar("Out")
Next = TypeVar("Next")
T = TypeVar("T")

Step = Callable[[In], Awaitable[Out]]

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0


class Stage(abc.ABC, Generic[In, Out]):
    """One step in the life of an item, usable alone: `await stage(item)`."""

    @abc.abstractmethod
    async def __call__(self, item: In, /) -> Out:
        """Turn an item into what the next stage takes."""

    def __or__(self, after: Step[Out, Next]) -> Chain[In, Next]:
        """Read `self | after` as: first self, then after."""
        return Chain((self, after))


class Chain(Stage[In, Out]):
    """Stages called in order, each with what the one before returned."""

    def __init__(self, steps: Sequence[Step[Any, Any]]) -> None:
        self.steps = tuple(steps)

    async def __call__(self, item: In, /) -> Out:
        """Carry one item through all steps."""
        value: Any = item
        for step in self.steps:
            value = await step(value)
        result: Out = value
        return result

    def __or__(self, after: Step[Out, Next]) -> Chain[In, Next]:
        """Lengthen the chain."""
        return Chain((*self.steps, after))


class Parcel(Generic[T]):
    """A body and the one call that settles it at its origin, made at most once.

    `settle(None)` lets the origin forget it; `settle(error)` gives it back.
    """

    def __init__(self, body: T, settle: Callable[[BaseException | None], Awaitable[None]]) -> None:
        self.body = body
        self._settle = settle
        self.settled = False

    async def settle(self, failure: BaseException | None) -> None:
        """Settle once; a later call does nothing."""
        if not self.settled:
            self.settled = True
            await self._settle(failure)


class Source(Protocol[T]):
    """Where items come from, and where they return when they cannot be carried on."""

    async def __aenter__(self) -> Self:
        """Open whatever the source listens to."""

    async def __aexit__(self, *exc: object) -> None:
        """Close it, after the last item is settled."""

    async def pull(self) -> Parcel[T] | None:
        """Wait for the next item; None once the source is quiet and has nothing left."""

    async def quiesce(self) -> None:
        """Stop the intake, and give back what nobody has pulled."""


@runtime_checkable
class Drainable(Protocol):
    """A stage that goes on working after it has returned."""

    async def drain(self, grace_seconds: float) -> None:
        """Let what runs finish within the grace, interrupt the rest, return when all is recorded."""


class Flow(Generic[T, Out]):
    """A source and the stages its items pass; up to `concurrency` items are under way at once."""

    def __init__(self, source: Source[T], steps: Sequence[Step[Any, Any]] = (), concurrency: int = 1) -> None:
        self.source = source
        self.steps = tuple(steps)
        self.concurrency = concurrency

    def __or__(self, stage: Step[Out, Next]) -> Flow[T, Next]:
        """Append a stage."""
        return Flow(self.source, (*self.steps, stage), self.concurrency)

    async def run(self, stop: asyncio.Event, grace_seconds: float) -> None:
        """Carry items until `stop` is set, then drain: within the grace, nothing is under way any more.

        An item that is not through by then is left unsettled: its origin still has it.
        """
        places = asyncio.Semaphore(self.concurrency)
        carried: set[asyncio.Task[None]] = set()

        def finished(task: asyncio.Task[None]) -> None:
            carried.discard(task)
            places.release()

        async with self.source, asyncio.TaskGroup() as group:
            quiescing = group.create_task(self._quiesce_after(stop))
            while True:
                # Items that wait for a database that is away keep their places; that must not keep us.
                await unless(stop, places.acquire())
                if stop.is_set():
                    break
                parcel = await self._pull(stop)
                if parcel is None:
                    break
                task = group.create_task(self._carry(parcel))
                carried.add(task)
                task.add_done_callback(finished)
            if stop.is_set():
                await quiescing
            quiescing.cancel()
            await self._drain(carried, asyncio.get_running_loop().time() + grace_seconds)

    async def _drain(self, carried: set[asyncio.Task[None]], deadline: float) -> None:
        clock = asyncio.get_running_loop().time
        if carried:
            _, late = await asyncio.wait(carried, timeout=max(0.0, deadline - clock()))
            for task in late:
                task.cancel()
        stages: tuple[object, ...] = self.steps
        for stage in stages:
            if isinstance(stage, Drainable):
                await stage.drain(max(0.0, deadline - clock()))

    async def _quiesce_after(self, stop: asyncio.Event) -> None:
        await stop.wait()
        try:
            await self.source.quiesce()
        except (Exception, asyncio.CancelledError) as error:
            if cancelled():
                raise
            # What is under way is still carried to its end; what the source holds is its origin's again.
            log.warning("intake not stopped", source=_name(self.source), error=_text(error))

    async def _pull(self, stop: asyncio.Event) -> Parcel[T] | None:
        """Pull, however long the origin is away: a process that lives needs no restart."""
        delays_seconds = backoff_seconds(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        while True:
            try:
                return await self.source.pull()
            except (Exception, asyncio.CancelledError) as error:
                if cancelled():
                    raise
                log.warning("source failed, asking again", source=_name(self.source), error=_text(error))
            await unless(stop, asyncio.sleep(next(delays_seconds)))
            if stop.is_set():
                return None

    async def _carry(self, parcel: Parcel[T]) -> None:
        failure: BaseException | None = None
        try:
            item: Any = parcel.body
            for step in self.steps:
                item = await step(item)
        except (Exception, asyncio.CancelledError) as error:
            if cancelled():
                raise
            # Broken plumbing or a bug: the origin still has the item.
            failure = error
            log.warning("given back", source=_name(self.source), error=_text(error))
        try:
            await asyncio.shield(parcel.settle(failure))
        except (Exception, asyncio.CancelledError):
            if cancelled():
                raise
            log.exception("not settled; it will come again", source=_name(self.source))


def flow(source: Source[T], concurrency: int = 1) -> Flow[T, T]:
    """Start a flow; append its stages with `|`."""
    return Flow(source, (), concurrency)


async def unless(stop: asyncio.Event, waiting: Coroutine[Any, Any, object]) -> None:
    """Wait for something, but no longer than until `stop` is set."""
    tasks = {asyncio.ensure_future(waiting), asyncio.ensure_future(stop.wait())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


def _name(thing: object) -> str:
    return type(thing).__name__


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
