"""The work of a chaos run. Every start and end leaves a line in a store that the service does not know."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import time
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.handlers import Permanent, RetryLater, handler

if TYPE_CHECKING:
    from pipeline.handlers import Context

HUGE_BYTES = 500_000
HOG_BYTES = 1 << 24


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a run lasts, and how many of the first attempts fail."""

    seconds: float = 0.0
    failures: int = 0


def leave(what: str, ctx: Context) -> None:
    """Append one line, whole, whoever else writes and dies."""
    run = [str(ctx.task_id), ctx.dispatch, ctx.attempt, ctx.idempotency_key]
    line = [what, *run, time.monotonic(), os.getpid()]
    file = os.open(os.environ["CHAOS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)


def _done(ctx: Context) -> dict[str, Any]:
    leave("end", ctx)
    return {"task": str(ctx.task_id), "dispatch": ctx.dispatch}


@handler("chaos.ok")
async def ok(work: Work, ctx: Context) -> dict[str, Any]:
    leave("start", ctx)
    await asyncio.sleep(work.seconds)
    return _done(ctx)


def _sleep(seconds: float) -> None:
    """Sleep without `time.sleep`, whose absolute deadline libfaketime turns into an invalid argument."""
    select.select([], [], [], seconds)


@handler("chaos.thread")
def thread(work: Work, ctx: Context) -> dict[str, Any]:
    leave("start", ctx)
    _sleep(work.seconds)
    return _done(ctx)


@handler("chaos.child", cpu=True)
def child(work: Work, ctx: Context) -> dict[str, Any]:
    leave("start", ctx)
    _sleep(work.seconds)
    return _done(ctx)


@handler("chaos.flaky")
async def flaky(work: Work, ctx: Context) -> dict[str, Any]:
    leave("start", ctx)
    await asyncio.sleep(work.seconds)
    if ctx.attempt <= work.failures:
        raise RuntimeError(f"attempt {ctx.attempt} fails as asked")
    return _done(ctx)


@handler("chaos.later")
async def later(work: Work, ctx: Context) -> dict[str, Any]:
    leave("start", ctx)
    if ctx.dispatch == 1:
        raise RetryLater(work.seconds)
    return _done(ctx)


@handler("chaos.permanent")
async def permanent(work: Work, ctx: Context) -> None:
    leave("start", ctx)
    await asyncio.sleep(work.seconds)
    raise Permanent("never again")


@handler("chaos.times_out", timeout_seconds=0.5, max_retries=1)
async def times_out(_work: Work, ctx: Context) -> None:
    leave("start", ctx)
    await asyncio.sleep(30)


@handler("chaos.stubborn", timeout_seconds=0.5, max_retries=0)
async def stubborn(work: Work, ctx: Context) -> dict[str, Any]:
    leave("start", ctx)
    until = time.monotonic() + work.seconds
    while time.monotonic() < until:
        try:
            await asyncio.sleep(until - time.monotonic())
        except asyncio.CancelledError:
            continue
    return _done(ctx)


@handler("chaos.huge")
async def huge(_work: Work, ctx: Context) -> dict[str, Any]:
    leave("start", ctx)
    return {**_done(ctx), "filling": "x" * HUGE_BYTES}


@handler("chaos.unstorable")
async def unstorable(_work: Work, ctx: Context) -> str:
    leave("start", ctx)
    return "\ud800"  # half a character, which no text can hold


@handler("chaos.exit")
async def leave_the_process(work: Work, ctx: Context) -> None:
    leave("start", ctx)
    await asyncio.sleep(work.seconds)
    os._exit(3)


@handler("chaos.segfault")
async def segfault(work: Work, ctx: Context) -> None:
    leave("start", ctx)
    await asyncio.sleep(work.seconds)
    ctypes.string_at(0)


@handler("chaos.hog", max_retries=0)
async def hog(_work: Work, ctx: Context) -> None:
    leave("start", ctx)
    held = []
    # The harness gives workers a limit of address space: this ends in MemoryError, or in the worker's death.
    while True:
        held.append(bytes(HOG_BYTES))
        await asyncio.sleep(0)
