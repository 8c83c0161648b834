"""Where operators look at a process: /metrics, /health/live and /health/ready on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from prometheus_client import make_asgi_app

from pipeline.http_server import Server, listen, url_of
from pipeline.monitoring.health import examine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    from pipeline.monitoring.health import Progress
    from pipeline.monitoring.metrics import Metrics
    from pipeline.settings import Settings

    Event = MutableMapping[str, Any]
    App = Callable[
        [Event, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]
    ]

log = structlog.get_logger()

GRACE_SECONDS = 1.0
"""How long an answer under way may keep the process from ending."""


@asynccontextmanager
async def listening(settings: Settings, metrics: Metrics, progress: Progress) -> AsyncIterator[str]:
    """Answer operators while the context is open, at the URL it gives.

    Raises PortTaken, or OSError for an address that this machine does not have.
    """
    with contextlib.closing(listen(settings.metrics_host, settings.metrics_port, "METRICS_PORT")) as listener:
        server = Server(create_app(settings, metrics, progress), GRACE_SECONDS)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        log.info("answering operators", url=url_of(listener))
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            await serving


def create_app(settings: Settings, metrics: Metrics, progress: Progress) -> App:
    """Make the ASGI application of the three paths."""
    show_metrics: App = make_asgi_app(metrics.registry)

    async def app(
        scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
    ) -> None:
        match scope["path"]:
            case "/metrics":
                await show_metrics(scope, receive, send)
            case "/health/live":
                await _answer(send, 200, {"live": True})
            case "/health/ready":
                health = await examine(settings, progress)
                await _answer(send, 200 if health.ready else 503, health)
            case _:
                await _answer(send, 404, {"paths": ["/metrics", "/health/live", "/health/ready"]})

    return app


async def _answer(send: Callable[[Event], Awaitable[None]], status: int, body: object) -> None:
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})
