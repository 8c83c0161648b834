"""Kinds that every installation has, for trying things out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pipeline.handlers.definition import handler
from pipeline.handlers.errors import Permanent

if TYPE_CHECKING:
    from pipeline.handlers.context import Context

LONGEST_SLEEP_SECONDS = 3_600


class Sleep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to sleep."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_SLEEP_SECONDS)]


class Slept(msgspec.Struct, frozen=True):
    """How long it slept."""

    slept_seconds: float


class Fail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to fail: until an attempt is reached, or always; with a repeat to follow, or for good."""

    message: str = "failed as asked"
    permanent: bool = False
    until_attempt: int | None = None


class FailedAsAsked(Exception):
    """What `fail` raises."""


@handler("echo")
async def echo(payload: Any) -> Any:
    """Return the payload."""
    return payload


@handler("sleep", timeout_seconds=LONGEST_SLEEP_SECONDS + 60)
async def sleep(payload: Sleep) -> Slept:
    """Sleep without keeping anyone from work."""
    await asyncio.sleep(payload.seconds)
    return Slept(payload.seconds)


@handler("fail")
async def fail(payload: Fail, ctx: Context) -> dict[str, int]:
    """Raise, so that retries and dead letters can be watched; succeed from `until_attempt` on."""
    if payload.until_attempt is not None and ctx.attempt >= payload.until_attempt:
        return {"attempt": ctx.attempt}
    if payload.permanent:
        raise Permanent(payload.message)
    raise FailedAsAsked(payload.message)
