"""The gateway on a socket: a server inside the role's own loop, started and drained by the role."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from gateway.wire import bounded
from pipeline.http_server import Server, listen, url_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar import Litestar

    from gateway.intake import Intake
    from gateway.waiting import Waiting


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
    http = bounded(app.state.request_timeout_seconds)
    server = Server(app, grace_seconds, http=http, started=lambda: started(url_of(listener)))
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
