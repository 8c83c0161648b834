"""Keeping one reply from its reader, once it is certain that it tells the truth."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from tests.chaos.harness.frames import Said

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.harness.frames import Conversation


class Swallowed(msgspec.Struct, frozen=True):
    """A reply that its reader never saw: what it said, and the bytes that were kept back."""

    what: str
    bytes: int


Wishes = deque[asyncio.Future[Swallowed]]
"""The replies that shall be swallowed next, on whichever connection they come."""


class Withholding:
    """Lets one connection's replies pass, but for those that are wished for."""

    def __init__(self, conversation: Conversation, wishes: Wishes, release: Callable[[bytes], None]) -> None:
        self._conversation = conversation
        self._wishes = wishes
        self._release = release
        self._wish: asyncio.Future[Swallowed] | None = None
        self._what = ""
        self._held = b""

    def passing(self, data: bytes) -> tuple[bytes, bool]:
        """Give what may pass of a chunk, and whether a reply was swallowed behind it."""
        marks = self._conversation.received(data)
        if self._wish is None and not (marks and self._wishes):
            return data, False
        kept = len(self._held)
        data = self._held + data
        begin = 0 if self._wish else len(data)
        for mark in marks:
            if isinstance(mark, Said):
                if self._wish is None and self._wishes:
                    self._begin(mark.what)
                    begin = max(0, kept + mark.start)
            elif self._wish is not None:
                if mark.stands and not self._wish.done():
                    self._wish.set_result(Swallowed(self._what, len(data) - begin))
                    self._wish = None
                    return data[:begin], True
                self.give_up()
                begin = len(data)
        self._held = data[begin:]
        return data[:begin], False

    def give_up(self) -> None:
        """Leave the wish to the next reply, since this one does not say what it seemed to."""
        wish, self._wish = self._wish, None
        if wish is not None:
            wish.remove_done_callback(self._out_of_time)
            if not wish.done():
                self._wishes.appendleft(wish)

    def _begin(self, what: str) -> None:
        self._what, self._wish = what, self._wishes.popleft()
        self._wish.add_done_callback(self._out_of_time)

    def _out_of_time(self, wish: asyncio.Future[Swallowed]) -> None:
        if wish.cancelled() and wish is self._wish:
            self._wish = None
            held, self._held = self._held, b""
            self._release(held)


async def swallow(wishes: Wishes, seconds: float) -> Swallowed | None:
    """Wish for a reply, and wait for it up to `seconds`."""
    wish: asyncio.Future[Swallowed] = asyncio.get_running_loop().create_future()
    wishes.append(wish)
    try:
        await asyncio.wait({wish}, timeout=seconds)
        return wish.result() if wish.done() else None
    finally:
        wish.cancel()
        if wish in wishes:
            wishes.remove(wish)
