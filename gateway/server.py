"""The gateway on a socket: uvicorn inside the role's own loop, started and drained by the role."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvicorn

from gateway.wire import BoundedHttp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from litestar import Litestar

    from gateway.intake import Intake
    from gateway.waiting import Waiting

log = structlog.get_logger()

KEEP_ALIVE_SECONDS = 5


class PortTaken(Exception):
    """Another process listens there already."""


async def serve(  # noqa: PLR0917 - what, where, until when and how
    app: Litestar,
    host: str,
    port: int,
    stop: asyncio.Event,
    grace_seconds: float,
    started: Callable[[str], None],
) -> None:
    """Serve until `stop` is set, then drain: waiters are answered, running requests end, writes are flushed.

    `started` hears the URL once requests are taken; port 0 takes a free one. Raises PortTaken, or OSError
    for an address that this machine does not have.
    """
    loop = asyncio.get_running_loop()
    intake: Intake = app.state.intake
    waiting: Waiting = app.state.waiting
    listener = listen(host, port)
    server = _Server(app, grace_seconds, lambda: started(_url(listener)))
    with contextlib.closing(listener):
        async with app.lifespan():
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            ends_at = loop.time() + grace_seconds
            waiting.release()
            server.should_exit = True
            await serving
            await intake.close(max(0.0, ends_at - loop.time()))


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen; raises PortTaken, naming who holds the port where that can be seen."""
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
            raise PortTaken(f"{host}:{port} is taken by {holder}; set PORT to a free one") from error
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn, without its hands on signals and logs; it tells when it is up."""

    def __init__(self, app: Litestar, grace_seconds: float, started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttp,
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


def _url(listener: socket.socket) -> str:
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
