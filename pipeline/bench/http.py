"""HTTP for a load generator: prebuilt requests, one under way per connection, and as little work as can be.

A request whose connection is lost is reported as unanswered. It may have been carried out, and it is never
sent again.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol, Self
from urllib.parse import urlsplit

import httptools
import msgspec

API = "/api/v1"
PORTS = {"http": 80, "https": 443}
CONNECT_SECONDS = 10.0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a gateway is; `base` is what stands before its `/api/v1`."""

    host: str
    port: int
    tls: bool = False
    base: str = ""
    token: str = ""

    def __repr__(self) -> str:
        """Leave the token out of logs and tracebacks."""
        return f"{'https' if self.tls else 'http'}://{self._host}:{self.port}{self.base}"

    @classmethod
    def of(cls, url: str, token: str = "") -> Self:
        """Take a URL apart; raises ValueError for one that names no HTTP server."""
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError(f"{url}: allowed: http://host:port or https://host:port")
        return cls(
            host=parts.hostname,
            port=parts.port or PORTS[parts.scheme],
            tls=parts.scheme == "https",
            base=parts.path.rstrip("/"),
            token=token,
        )

    def post(self, path: str, body: bytes) -> bytes:
        """Write a request as it goes over the wire; `path` is below `/api/v1`."""
        head = [
            f"POST {self.base}{API}{path} HTTP/1.1",
            f"Host: {self._host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([f"Authorization: Bearer {self.token}"] if self.token else []),
        ]
        return "\r\n".join((*head, "", "")).encode() + body

    def trust(self) -> ssl.SSLContext | None:
        """Load the certificates that https needs; it takes longer than a connection, so do it once."""
        return ssl.create_default_context() if self.tls else None

    async def connect(self, taker: Taker, tls: ssl.SSLContext | None) -> Connection:
        """Open a connection whose events `taker` hears; raises OSError, TimeoutError among them."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await loop.create_connection(
                lambda: Connection(taker), self.host, self.port, ssl=tls
            )
        return connection

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


class Taker(Protocol):
    """Hears what becomes of the requests of a connection."""

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        """Take an answer; another request may be sent where the connection is `reusable`."""

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        """Note that a connection is gone, and whether a request went with it."""


class Connection(asyncio.Protocol):
    """One connection, kept alive, with at most one request under way."""

    def __init__(self, taker: Taker) -> None:
        self._taker = taker
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._complete = False
        self._status = 0
        self.busy = False
        self.reusable = True
        self.due_at = 0.0
        self.sent_at = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream
        """Take the transport."""
        self.transport = transport

    def send(self, request: bytes, due_at: float, sent_at: float) -> None:
        """Send a request, and keep its times for who is told of the answer; there must be none under way."""
        self.due_at, self.sent_at = due_at, sent_at
        self.busy = True
        self.transport.write(request)

    def close(self) -> None:
        """Give the connection up, with the request that may be under way."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse; what is no HTTP, or was not asked for, ends the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        if not self._complete:
            return
        body, self._body, self._complete = b"".join(self._body), [], False
        if not self.busy:
            self.transport.abort()
            return
        self.busy = False
        if not self.reusable:
            self.transport.close()
        self._taker.answered(self, self._status, body)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why makes no difference
        """Report what is lost with it."""
        unanswered, self.busy, self.reusable = self.busy, False, False
        self._taker.lost(self, unanswered=unanswered)

    def on_body(self, chunk: bytes) -> None:
        """Collect; called by the parser."""
        self._body.append(chunk)

    def on_message_complete(self) -> None:
        """Note the end of an answer; called by the parser, who forgets these two right afterwards."""
        self._status = self._parser.get_status_code()
        self.reusable = self._parser.should_keep_alive()
        self._complete = True
