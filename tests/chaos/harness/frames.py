"""Finds the frames of a byte stream whose chunks begin and end anywhere."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Said(NamedTuple):
    """Here begins a reply that says something was done.

    `start` counts from the beginning of the chunk, below 0 where the frame began in an earlier one.
    """

    start: int
    what: str


class Ruling(NamedTuple):
    """Whether what was said since the last ruling stands: False where it may yet be rolled back, or was."""

    stands: bool


Mark = Said | Ruling


class Conversation(Protocol):
    """What is known of one connection by its protocol."""

    def sent(self, data: bytes) -> None:
        """Take note of a chunk from the client."""

    def received(self, data: bytes) -> Sequence[Mark]:
        """Find what a chunk from the server says, in order."""


class Frame(NamedTuple):
    """A frame that is looked at: `start` as in `Said`, the body cut off after `most_bytes`."""

    start: int
    kind: int
    body: bytes


class Frames:
    """Takes one direction of a stream apart; only frames of the `kinds` asked for are given.

    `header` unpacks into kind and size, and a frame is `size + beyond` bytes long, header included.
    """

    def __init__(self, header: str, beyond: int, kinds: bytes, most_bytes: int) -> None:
        self._header = struct.Struct(header)
        self._beyond = beyond
        self._kinds = frozenset(kinds)
        self._most_bytes = most_bytes
        self._skip = 0  # bytes of a frame that is not looked at any more
        self._begun = b""  # a frame that cannot be judged yet, from its first byte

    def feed(self, data: bytes) -> Sequence[Frame]:
        """Give the frames that this chunk brings to light."""
        at, earlier, end = self._skip, len(self._begun), len(data)
        if at >= end:
            self._skip = at - end
            return ()
        if earlier:
            data = self._begun + data
            end += earlier
        unpack, header_bytes = self._header.unpack_from, self._header.size
        found: list[Frame] = []
        while at + header_bytes <= end:
            kind, size = unpack(data, at)
            whole = size + self._beyond
            if kind in self._kinds:
                seen = at + min(whole, self._most_bytes)
                if seen > end:
                    break
                found.append(Frame(at - earlier, kind, data[at + header_bytes : seen]))
            at += whole
        self._skip, self._begun = max(0, at - end), data[at:]
        return found
