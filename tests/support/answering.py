"""An HTTP server in the process of the test that answers, or does not, as the test says."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import httptools
import msgspec

from pipeline.bench.http import Target

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator


class Request(NamedTuple):
    """A request as it came."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """An answer; a `status` of None hangs up instead. It is held back while `held` is not set."""

    status: int | None = 201
    body: object = None
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    held: asyncio.Event | None = None

    def written(self) -> bytes:
        body = msgspec.json.encode(self.body)
        kind = "application/problem+json" if (self.status or 0) >= 400 else "application/json"
        head = {"content-type": kind, "content-length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} X", *(f"{name}: {value}" for name, value in head.items())]
        return "\r\n".join((*lines, "", "")).encode() + body


class _Answering(asyncio.Protocol):
    def __init__(self, answer: Callable[[Request], Reply], connections: list[asyncio.Transport]) -> None:
        self._answer = answer
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._url = ""
        self._headers: dict[str, str] = {}
        self._body = b""
        self._complete = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream
        self._transport = transport
        self._connections.append(transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._complete:
            request = Request(self._parser.get_method().decode(), self._url, self._headers, self._body)
            self._url, self._headers, self._body, self._complete = "", {}, b"", False
            asyncio.get_running_loop().create_task(self._reply(self._answer(request)))

    async def _reply(self, reply: Reply) -> None:
        if reply.held is not None:
            await reply.held.wait()
        if reply.status is None:
            self._transport.close()
        else:
            self._transport.write(reply.written())

    def on_url(self, url: bytes) -> None:
        self._url += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._complete = True


class Served(NamedTuple):
    """A server that answers, and the connections that were made to it."""

    url: str
    connections: list[asyncio.Transport]

    @property
    def target(self) -> Target:
        return Target.of(self.url)


@asynccontextmanager
async def answering(
    answer: Callable[[Request], Reply], *, tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[Served]:
    """Answer requests on a port of the loopback."""
    connections: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(answer, connections), "127.0.0.1", port, ssl=tls)
    try:
        number = server.sockets[0].getsockname()[1]
        yield Served(f"{'https' if tls else 'http'}://127.0.0.1:{number}", connections)
    finally:
        server.close()
        for connection in connections:
            connection.abort()


@contextmanager
def answering_in_a_thread(answer: Callable[[Request], Reply]) -> Iterator[str]:
    """Answer likewise for a program that blocks this thread; the URL."""
    urls: list[str] = []
    up = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with answering(answer) as served:
            urls.append(served.url)
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    up.wait()
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
