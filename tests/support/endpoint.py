"""An HTTP server that answers what a test has prepared, byte for byte."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator


class Received(NamedTuple):
    """A request as it came; names of headers in lower case."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:  # type: ignore[override]  # by name, of the one header
        [value] = [value for each, value in self.headers if each == name]
        return value


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Write an answer with its Content-Length."""
    lines = [f"HTTP/1.1 {status} Anything", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


class Endpoint:
    """Gives one answer after the other, the last one for ever, each on a connection of its own.

    After its answer a connection stays open for as long as the caller holds it, unless `hang_up`.
    """

    def __init__(self) -> None:
        self.port = 0
        self.answers = [answer(200)]
        self.received: list[Received] = []
        self.hang_up = False
        self.open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            headers = [
                (name.lower(), value) for name, _, value in (line.partition(": ") for line in head[1:])
            ]
            length = int(dict(headers).get("content-length", "0"))
            self.received.append(Received(head[0], headers, await reader.readexactly(length)))
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            if not self.hang_up:
                await reader.read()
        except (OSError, EOFError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def endpoint(tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    """Open one on a free port of 127.0.0.1."""
    opened = Endpoint()
    async with await asyncio.start_server(opened.serve, "127.0.0.1", 0, ssl=tls) as server:
        opened.port = server.sockets[0].getsockname()[1]
        yield opened
