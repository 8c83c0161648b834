"""Waiting for a condition instead of for time."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

POLL_SECONDS = 0.02


@overload
async def eventually(predicate: Callable[[], Awaitable[T]], seconds: float = 10.0) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], seconds: float = 10.0) -> T: ...
async def eventually(predicate: Callable[[], object], seconds: float = 10.0) -> object:
    """Return the first truthy value of `predicate`, plain or async; AssertionError names the last one.

    What the predicate raises is raised: an error is not a "not yet". One that hangs is cut off too.
    """
    value: object = "<no value yet>"
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            while True:
                answer = predicate()
                value = await answer if inspect.isawaitable(answer) else answer
                if value:
                    return value
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        if not limit.expired():
            raise
        name = getattr(predicate, "__qualname__", repr(predicate))
        raise AssertionError(f"not within {seconds} s: {name} last gave {value!r}") from None
