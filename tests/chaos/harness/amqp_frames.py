"""What a broker says in AMQP 0-9-1: method, channel, size, payload and an end octet to a frame."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.chaos.harness.frames import Frames, Ruling, Said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.harness.frames import Mark

HEADER, BEYOND = ">BxxI", 8
METHOD = 1
BASIC_ACK = struct.pack(">HH", 60, 80)
ACK = struct.Struct(">4xQB")
LONGEST_BYTES = 7 + ACK.size


class AmqpConversation:
    """Looks for confirms: the one `basic.ack` that comes from a broker."""

    def __init__(self) -> None:
        self._frames = Frames(HEADER, BEYOND, bytes([METHOD]), LONGEST_BYTES)

    def sent(self, data: bytes) -> None:
        """Nothing a client sends changes how the broker's frames are read."""

    def received(self, data: bytes) -> Sequence[Mark]:
        """Find the confirms; each stands at once."""
        marks: list[Mark] = []
        for start, _, body in self._frames.feed(data):
            if body.startswith(BASIC_ACK):
                tag, bits = ACK.unpack(body)
                marks += (Said(start, f"basic.ack {tag}{' multiple' * (bits & 1)}"), Ruling(stands=True))
        return marks
