"""Every call to the ledger ends: with its answer, or Late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class Late(Exception):
    """The ledger did not answer in time; a write that was asked may still be carried out."""


class Deadline:
    """`await deadline(call)` gives what `call` gives, or raises Late after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, call: Awaitable[T]) -> T:
        """Await a call, but not for ever."""
        try:
            async with asyncio.timeout(self.seconds):
                return await call
        except TimeoutError as error:
            raise Late(f"no answer within {self.seconds:g} seconds") from error
