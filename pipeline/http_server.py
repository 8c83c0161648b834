"""HTTP inside a role's own loop: uvicorn without its hands on signals and logs, and its socket."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

KEEP_ALIVE_SECONDS = 5


class PortTaken(Exception):
    """Another process listens there already."""


class Server(uvicorn.Server):
    """Serves an application on a socket of `listen`, and tells when it is up.

    It ends when `should_exit` is set and requests under way are answered, at the latest after the grace.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        grace_seconds: float,
        *,
        http: type[asyncio.Protocol] | None = None,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=http or "httptools",
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(grace_seconds),
            )
        )
        self._tell_started = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the role: uvicorn would take them, and raise them again when it has stopped."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        self._tell_started()


def listen(host: str, port: int, setting: str = "PORT") -> socket.socket:
    """Bind and listen, port 0 on a free one; `setting` is what an operator may change.

    Raises PortTaken, naming who holds the port where that can be seen, or OSError for an address that this
    machine does not have.
    """
    family, kind, protocol, _, address = min(
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE),
        key=lambda found: found[0] != socket.AF_INET,  # localhost means 127.0.0.1 to most clients
    )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            holder = next(_holders(port), "another process")
            raise PortTaken(f"{host}:{port} is taken by {holder}; set {setting} to a free one") from error
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Tell where a socket of `listen` is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _holders(port: int) -> Iterator[str]:
    """Name the processes that listen on a port, as far as /proc shows them to this user."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in _read(Path("/proc/net") / table).splitlines()[1:]
    ]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in listening:  # noqa: PTH115 - a socket is not a path
                process = descriptor.parts[2]
                yield f"process {process} ({_read(Path('/proc') / process / 'comm').strip()})"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
