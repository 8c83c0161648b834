"""Running handlers on the loop and in threads."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from pipeline.handlers import Context, Handlers, PayloadInvalid, Permanent, handler
from pipeline.handlers.errors import NotStarted, ResultInvalid
from pipeline.handlers.runners import InThread, OnLoop, Runners
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONTEXT = Context(task_id=uuid4(), kind="any", attempt=3)
TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")


class Panic(BaseException):
    """As extension modules raise it, past every `except Exception`."""


class Gate:
    """Holds handlers in their threads until it is opened, and tells who came."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside: list[threading.Thread] = []

    def pass_through(self) -> None:
        self.inside.append(threading.current_thread())
        assert self.opened.wait(10)


@handler("on.loop")
async def on_loop(payload: int, ctx: Context) -> list[int]:
    return [payload, ctx.attempt]


@handler("in.thread")
def in_thread(payload: int, ctx: Context) -> list[int]:
    return [payload, ctx.attempt]


@pytest.fixture
async def threads() -> AsyncIterator[InThread]:
    threads = InThread(2)
    yield threads
    threads.close()


async def test_an_async_handler_runs_on_the_loop() -> None:
    assert await OnLoop().run(on_loop, b"1", CONTEXT) == "[1,3]"


async def test_a_sync_handler_runs_in_a_thread(threads: InThread) -> None:
    assert await threads.run(in_thread, b"1", CONTEXT) == "[1,3]"


async def test_both_refuse_payloads_and_results(threads: InThread) -> None:
    async def loose_async(payload: int) -> object:
        return object() if payload else None

    def loose_sync(payload: int) -> object:
        return object() if payload else None

    for runner, each in ((OnLoop(), handler("a")(loose_async)), (threads, handler("b")(loose_sync))):
        with pytest.raises(PayloadInvalid):
            await runner.run(each, b'"x"', CONTEXT)
        with pytest.raises(ResultInvalid):
            await runner.run(each, b"1", CONTEXT)
        assert await runner.run(each, b"0", CONTEXT) == "null"


@pytest.mark.parametrize("error", [Permanent("no"), KeyError("k")])
async def test_exceptions_come_out_as_they_are(threads: InThread, error: Exception) -> None:
    @handler("a")
    async def on_loop(_: Any) -> None:
        raise error

    @handler("b")
    def in_thread(_: Any) -> None:
        raise error

    for runner, each in ((OnLoop(), on_loop), (threads, in_thread)):
        with pytest.raises(type(error)) as caught:
            await runner.run(each, b"0", CONTEXT)
        assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit(2), StopIteration(2), Panic(2), asyncio.CancelledError(2)])
async def test_what_would_end_the_worker_or_look_like_a_cancellation_is_an_ordinary_error(
    threads: InThread, error: BaseException
) -> None:
    @handler("a")
    async def on_loop(_: Any) -> None:
        raise error

    @handler("b")
    def in_thread(_: Any) -> None:
        raise error

    for runner, each in ((OnLoop(), on_loop), (threads, in_thread)):
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match=rf"raised {type(error).__name__}"):
                await runner.run(each, b"0", CONTEXT)


async def test_a_cancellation_goes_to_the_handler_on_the_loop() -> None:
    seen = asyncio.Event()
    started = asyncio.Event()

    @handler("a")
    async def waiting(_: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.set()

    run = asyncio.create_task(OnLoop().run(waiting, b"0", CONTEXT))
    await started.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert seen.is_set()


async def test_threads_are_used_again(threads: InThread) -> None:
    seen = set()

    @handler("a")
    def note(_: Any) -> None:
        seen.add(threading.current_thread())

    for _ in range(5):
        await threads.run(note, b"0", CONTEXT)
    assert len(seen) == 1
    assert all(thread.daemon for thread in seen)


async def test_no_more_than_the_slots_run_at_once(threads: InThread) -> None:
    gate = Gate()

    @handler("a")
    def held(_: Any) -> None:
        gate.pass_through()

    runs = [asyncio.create_task(threads.run(held, b"0", CONTEXT)) for _ in range(5)]
    await eventually(lambda: len(gate.inside) == 2)
    gate.opened.set()
    await asyncio.gather(*runs)
    assert len(gate.inside) == 5
    assert len(set(gate.inside)) == 2


async def test_context_variables_go_along_and_do_not_come_back(threads: InThread) -> None:
    @handler("a")
    def read(_: Any) -> str:
        value = TRACE.get()
        TRACE.set("changed by the handler")
        return value

    TRACE.set("mine")
    assert await threads.run(read, b"0", CONTEXT) == '"mine"'
    assert await threads.run(read, b"0", CONTEXT) == '"mine"'


async def test_a_cancelled_wait_leaves_the_thread_and_its_slot_is_free(threads: InThread) -> None:
    gate = Gate()

    @handler("a")
    def held(_: Any) -> None:
        gate.pass_through()

    left = [asyncio.create_task(threads.run(held, b"0", CONTEXT)) for _ in range(2)]
    await eventually(lambda: len(gate.inside) == 2)
    for run in left:
        run.cancel()
    outcomes = await asyncio.gather(*left, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    assert all(thread.is_alive() for thread in gate.inside)
    assert await threads.run(in_thread, b"1", CONTEXT) == "[1,3]"
    gate.opened.set()
    await eventually(lambda: not any(thread.is_alive() for thread in gate.inside))
    assert await threads.run(in_thread, b"1", CONTEXT) == "[1,3]"


async def test_a_thread_that_was_left_is_forgotten_once_its_handler_has_ended(threads: InThread) -> None:
    gate = Gate()

    @handler("a")
    def held(_: Any) -> None:
        gate.pass_through()

    run = asyncio.create_task(threads.run(held, b"0", CONTEXT))
    await eventually(lambda: gate.inside)
    run.cancel()
    await asyncio.wait([run])
    del run  # its exception holds the frames, and they the thread
    left = weakref.ref(gate.inside.pop())
    gate.opened.set()
    await eventually(lambda: left() is None)


async def test_a_run_cancelled_before_its_slot_is_free_never_starts(threads: InThread) -> None:
    gate = Gate()

    @handler("a")
    def held(_: Any) -> None:
        gate.pass_through()

    runs = [asyncio.create_task(threads.run(held, b"0", CONTEXT)) for _ in range(3)]
    await eventually(lambda: len(gate.inside) == 2)
    runs[2].cancel()
    gate.opened.set()
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert len(gate.inside) == 2


async def test_close_ends_idle_threads(threads: InThread) -> None:
    seen = []

    @handler("a")
    def note(_: Any) -> None:
        seen.append(threading.current_thread())

    await threads.run(note, b"0", CONTEXT)
    threads.close()
    await eventually(lambda: not seen[0].is_alive())


def test_a_thread_may_finish_after_its_loop_is_closed() -> None:
    gate = Gate()

    @handler("a")
    def held(_: Any) -> None:
        gate.pass_through()

    async def leave_it() -> None:
        run = asyncio.create_task(InThread(1).run(held, b"0", CONTEXT))
        await eventually(lambda: gate.inside)
        run.cancel()
        await asyncio.wait([run])

    asyncio.run(leave_it())
    gate.opened.set()
    gate.inside[0].join(10)
    assert not gate.inside[0].is_alive()


def test_a_thread_left_behind_does_not_keep_the_interpreter() -> None:
    program = """if True:
        import asyncio, time, uuid
        from pipeline.handlers import Context, handler
        from pipeline.handlers.runners import InThread

        @handler("a")
        def stuck(_): time.sleep(60)

        async def main():
            async with asyncio.timeout(0.2):
                await InThread(1).run(stuck, b"0", Context(task_id=uuid.uuid4(), kind="a"))

        try:
            asyncio.run(main())
        except TimeoutError:
            print("left")
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert (done.stdout, done.stderr) == ("left\n", "")


async def test_when_no_thread_is_to_be_had_the_handler_is_not_blamed() -> None:
    before = threading.stack_size(2**46)  # more than any address space grants a thread
    try:
        with pytest.raises(NotStarted, match="no thread for the handler"):
            await InThread(1).run(in_thread, b"1", CONTEXT)
    finally:
        threading.stack_size(before)


async def test_runners_choose_by_mode() -> None:
    @handler("where.loop")
    async def where_loop(_: Any) -> str:
        return threading.current_thread().name

    @handler("where.thread")
    def where_thread(_: Any) -> str:
        return threading.current_thread().name

    async with Runners(1, Handlers([where_loop, where_thread])) as runners:
        assert await runners.run(where_loop, b"0", CONTEXT) == '"MainThread"'
        assert await runners.run(where_thread, b"0", CONTEXT) == '"handler"'
