"""Asking again somebody who is away: how long to wait, and how often."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from storage.errors import StorageError

Answer = TypeVar("Answer")

FIRST_BACKOFF_SECONDS = 0.05
LONGEST_BACKOFF_SECONDS = 2.0


def backoff_seconds(
    first: float = FIRST_BACKOFF_SECONDS, longest: float = LONGEST_BACKOFF_SECONDS
) -> Iterator[float]:
    """Yield waits without end, each twice the last up to `longest`, jittered so that processes spread out."""
    delay_seconds = first
    while True:
        yield delay_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        delay_seconds = min(delay_seconds * 2, longest)


async def until_known(
    ask: Callable[[], Awaitable[Answer]],
    unknown: tuple[type[StorageError], ...],
    tell: Callable[[StorageError], object],
    *,
    known: tuple[type[StorageError], ...] = (),
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Answer:
    """Ask the ledger the same, which must bear it, as long as it fails with one of `unknown`.

    Each failure is told before the next wait. One of `known`, which goes first, is an answer and raised, as
    is any other error.
    """
    delays_seconds = backoff_seconds()
    while True:
        try:
            return await ask()
        except known:
            raise
        except unknown as error:
            tell(error)
        await sleep(next(delays_seconds))
