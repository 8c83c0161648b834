"""HTTP on the wire: uvicorn's httptools protocol, with the bounds and error bodies that it leaves out.

httptools bounds neither the size of a request's head nor the time a request takes, and uvicorn answers what
it cannot parse in plain text. Most requests come in one piece: they cost no timer. It also writes head and
body of an answer one by one, each a call of the system; here they leave together.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.problems import MEDIA_TYPE, Problem, ProblemType, body_of

if TYPE_CHECKING:
    from asyncio import TimerHandle

MOST_HEAD_BYTES = 16 * 1024
HEAD_SECONDS = 10.0

_MALFORMED = Problem(ProblemType.BAD_REQUEST, "the request is not HTTP/1.1")
_TOO_LARGE = Problem(ProblemType.HEAD_TOO_LARGE, f"allowed: up to {MOST_HEAD_BYTES} bytes")
_TOO_SLOW = Problem(
    ProblemType.BODY_TIMEOUT, f"request line and headers were not complete after {HEAD_SECONDS:g} seconds"
)


class Gathering(asyncio.Transport):
    """A transport that sends what is written within one turn of the loop in one piece."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._written: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it soon."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether it is closed or will be."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Take nothing from the socket for a while."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the socket again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Tell what is known of the socket."""
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        data, self._written = b"".join(self._written), []
        if data and not self._transport.is_closing():  # uvloop raises where the connection was lost meanwhile
            self._transport.write(data)


class BoundedHttp(HttpToolsProtocol):
    """One connection; a head too large, or a request too slow, is refused, and the connection closed."""

    body_seconds = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: TimerHandle | None = None
        self._body_timer: TimerHandle | None = None
        self._refusal = _MALFORMED

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Start the clock for the first head."""
        super().connection_made(Gathering(transport, self.loop))
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._stop_timers()

    def data_received(self, data: bytes) -> None:
        """Parse; a request may come in many pieces, and is watched while it is incomplete."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_head:
            if self._body_timer is None:
                self._body_timer = self.loop.call_later(self.body_seconds, self._give_up_body)
        elif self._head_bytes:
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(_TOO_LARGE)
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def on_headers_complete(self) -> None:
        """Let a request of bounded size begin."""
        self._in_head = False
        self._stop_timers()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            self._refusal = _TOO_LARGE
            raise ValueError("head too large")  # httptools makes a parser error of it: send_400_response
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next head."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0
        if self._body_timer is not None:
            self._stop_timers()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words are dropped
        """Answer what is no request with a problem."""
        self._refuse(self._refusal)

    def _give_up(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(_TOO_SLOW)
        else:
            self.transport.close()  # a connection that never asked anything gets no answer

    def _give_up_body(self) -> None:
        """Answer for the application, which hears that the client is gone, unless it has answered before."""
        if self.cycle.response_started:
            self.transport.close()
        else:
            slow = f"the body was not complete after {self.body_seconds:g} seconds"
            self._refuse(Problem(ProblemType.BODY_TIMEOUT, slow))

    def _refuse(self, problem: Problem) -> None:
        body = body_of(problem)
        head = b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(
            STATUS_LINE[problem.type.status] + head % (MEDIA_TYPE.encode(), len(body)) + body
        )
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._body_timer = None


def bounded(body_seconds: float) -> type[BoundedHttp]:
    """Make the class of connections on which a body may take so long: uvicorn takes no argument for them."""
    return type(BoundedHttp.__name__, (BoundedHttp,), {"body_seconds": body_seconds})
