"""One connection through the proxy: a client's end, a server's end, and what waits between them."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, cast

from tests.chaos.harness.swallowing import Withholding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.harness.frames import Conversation
    from tests.chaos.harness.network import Network
    from tests.chaos.harness.swallowing import Wishes

    Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]]

MOST_WAITING_BYTES = 1 << 20
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 s: close sends RST

_numbers = itertools.count()


class End(asyncio.Protocol):
    """What is read here is written at the other end, at once or when its time has come."""

    other: End

    def __init__(self, connection: Connection) -> None:
        self.transport: asyncio.Transport | None = None
        self.gone = False
        self.finished = False  # all that will ever be read here has been written
        self._connection = connection
        self._network = connection.network
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._other_is_full = False
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._connection.made(self)

    def data_received(self, data: bytes) -> None:
        if self._network.holes:
            self._network.lost(self._connection.number, len(data))
        else:
            self._connection.read(self, data)

    def eof_received(self) -> bool:
        self.carry(b"")
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        self.other.regulate(other_is_full=True)

    def resume_writing(self) -> None:
        self.other.regulate(other_is_full=False)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it was lost
        self.gone = True
        self._connection.lost()

    def carry(self, data: bytes) -> None:
        """Write at the other end, behind what waits already; nothing stands for the end of the stream."""
        if self._waiting or self._network.slow or self.other.transport is None:
            self._wait(data, self._network.seconds(self._connection.number, len(data)))
        else:
            self._write(data)

    def regulate(self, *, other_is_full: bool | None = None) -> None:
        """Read only what can be carried on."""
        if other_is_full is not None:
            self._other_is_full = other_is_full
        reading = not (self._other_is_full or self._waiting_bytes > MOST_WAITING_BYTES)
        if reading == self._reading or self.transport is None or self.transport.is_closing():
            return
        self._reading = reading
        if reading:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def deliver_when_due(self) -> None:
        """See to it that what waits is written, once there is somebody to write it to."""
        if self._timer is None and self._waiting and self.other.transport is not None:
            self._timer = asyncio.get_running_loop().call_at(self._waiting[0][0], self._deliver)

    def abort(self) -> None:
        """Forget what waits, and say so to the peer: by RST, where it is not a unix socket."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self.transport is None or self.gone:
            return
        opened = self.transport.get_extra_info("socket")
        if opened.family != socket.AF_UNIX:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def _wait(self, data: bytes, seconds: float) -> None:
        self._waiting.append((asyncio.get_running_loop().time() + seconds, data))
        self._waiting_bytes += len(data)
        self.regulate()
        self.deliver_when_due()

    def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._waiting and self._waiting[0][0] <= loop.time():
            _, data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._write(data)
        self.regulate()
        self.deliver_when_due()

    def _write(self, data: bytes) -> None:
        to = self.other.transport
        if to is None or to.is_closing():
            return
        if self._network.holes:
            self._network.lost(self._connection.number, len(data))
        elif data:
            to.write(data)
        elif self.other.finished:
            self._connection.close()
        else:
            self.finished = True
            to.write_eof()


class Connection:
    """Two ends, the conversation between them, and the one way it ends for both."""

    def __init__(
        self,
        network: Network,
        conversation: Conversation,
        wishes: Wishes,
        dial: Dial,
        forget: Callable[[Connection], None],
    ) -> None:
        self.number = next(_numbers)
        self.network = network
        self.over = asyncio.Event()
        self.ended = False
        self.client, self.server = End(self), End(self)
        self.client.other, self.server.other = self.server, self.client
        self._conversation = conversation
        self._replies = Withholding(conversation, wishes, self.server.carry)
        self._dial = dial
        self._dialling: asyncio.Task[None] | None = None
        self._forget = forget

    def made(self, end: End) -> None:
        """Look for the server once the client is there; in a black hole there is none."""
        if self.ended:
            end.abort()
        elif end is self.server:
            self.client.deliver_when_due()
        elif self.network.holes:
            for hole in self.network.holes:
                hole.touched(self.number)
        else:
            self._dialling = asyncio.create_task(self._find_server())

    def read(self, end: End, data: bytes) -> None:
        """Take part of a conversation to the other end."""
        if end is self.client:
            self._conversation.sent(data)
            end.carry(data)
            return
        passing, swallowed = self._replies.passing(data)
        if passing:
            end.carry(passing)
        if swallowed:
            self.reset()

    def lost(self) -> None:
        """End with either of the ends, unless a black hole keeps the news from the other."""
        if not self.ended and not self.network.holes:
            self.reset()
        self._look_whether_over()

    def close(self) -> None:
        """End in peace, once what has been written is out."""
        self.ended = True
        for end in (self.client, self.server):
            if end.transport is not None:
                end.transport.close()

    def reset(self) -> bool:
        """End at once on both sides; False if it had ended before."""
        ended, self.ended = self.ended, True
        if self._dialling is not None:
            self._dialling.cancel()
        self._replies.give_up()
        self.client.abort()
        self.server.abort()
        self._look_whether_over()
        return not ended

    async def _find_server(self) -> None:
        try:
            await self._dial(lambda: self.server)
        except OSError:
            if not self.network.holes:
                self.reset()

    def _look_whether_over(self) -> None:
        if self.ended and all(end.transport is None or end.gone for end in (self.client, self.server)):
            self.over.set()
            self._forget(self)
