"""Handlers of the tests: each leaves a line in the file EFFECTS for every start."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from pipeline.handlers import Context, Permanent, RetryLater, handler


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a run lasts and how it ends."""

    seconds: float = 0.0
    note: str = "-"


def leave(ctx: Context, note: str) -> None:
    """Append one line, whole, whoever else writes."""
    where = threading.get_native_id()
    line = f"{ctx.task_id} {ctx.dispatch} {note} {time.monotonic():.4f} {where}\n".encode()
    file = os.open(Path(os.environ["EFFECTS"]), os.O_WRONLY | os.O_APPEND)
    os.write(file, line)
    os.close(file)


@handler("work.do")
async def do(work: Work, ctx: Context) -> dict[str, Any]:
    leave(ctx, work.note)
    await asyncio.sleep(work.seconds)
    return {"note": work.note, "key": ctx.idempotency_key}


@handler("work.gated")
async def gated(work: Work, ctx: Context) -> str:
    leave(ctx, work.note)
    while not _is_open(ctx.dispatch):  # noqa: ASYNC110 - the test is another process
        await asyncio.sleep(0.02)
    return work.note


def _is_open(dispatch: int) -> bool:
    return Path(f"{os.environ['EFFECTS']}.{dispatch}").exists()


@handler("work.thread")
def thread(work: Work, ctx: Context) -> str:
    leave(ctx, work.note)
    time.sleep(work.seconds)
    return work.note


@handler("work.spin")
def spin(work: Work, ctx: Context) -> None:
    leave(ctx, work.note)
    until = time.monotonic() + work.seconds
    while time.monotonic() < until:
        pass


@handler("work.process", cpu=True)
def process(work: Work, ctx: Context) -> int:
    leave(ctx, work.note)
    time.sleep(work.seconds)
    return os.getpid()


@handler("work.fail")
async def fail(work: Work, ctx: Context) -> None:
    leave(ctx, work.note)
    raise RuntimeError("as asked")


@handler("work.permanent")
async def permanent(work: Work, ctx: Context) -> None:
    leave(ctx, work.note)
    raise Permanent("never again")


@handler("work.later")
async def later(work: Work, ctx: Context) -> str:
    leave(ctx, work.note)
    if ctx.dispatch == 1:
        raise RetryLater(work.seconds)
    return "later"


@handler("work.stubborn")
async def stubborn(work: Work, ctx: Context) -> str:
    leave(ctx, work.note)
    while True:
        try:
            await asyncio.sleep(work.seconds)
        except asyncio.CancelledError:
            continue
        return "stubborn"


@handler("work.kill_worker")
async def kill_worker(work: Work, ctx: Context) -> None:
    leave(ctx, work.note)
    os.kill(os.getpid(), signal.SIGKILL)


@handler("work.exit")
async def leave_the_process(work: Work, ctx: Context) -> None:
    leave(ctx, work.note)
    await asyncio.sleep(work.seconds)
    os._exit(3)


@handler("work.segfault")
async def segfault(work: Work, ctx: Context) -> None:
    leave(ctx, work.note)
    await asyncio.sleep(work.seconds)
    ctypes.string_at(0)


@handler("work.nul")
async def nul(_work: Work, ctx: Context) -> str:
    leave(ctx, "nul")
    return "a\0b"
