"""The gateway as one Litestar application; everything it needs is handed in."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from litestar import Litestar, Request, Router
from litestar.exceptions import NotFoundException
from litestar.middleware import DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from gateway.auth import Doorkeeper
from gateway.dead_letters import DeadLetterRoutes
from gateway.deadline import Deadline
from gateway.health import HealthRoutes
from gateway.ids import Ids
from gateway.intake import Intake
from gateway.kinds import KindRoutes
from gateway.outbox import OutboxRoutes
from gateway.payloads import Acceptance
from gateway.problems import answer
from gateway.tasks import TaskRoutes
from gateway.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from gateway.settings import GatewaySettings
    from pipeline.handlers import Handler
    from pipeline.ports import Ledger

DOCUMENT = "/schema"


def create_app(
    ledger: Ledger, handlers: Mapping[str, Handler[..., Any]], settings: GatewaySettings
) -> Litestar:
    """Wire the gateway. `app.state` has its `intake` and its `waiting` room, for whoever stops it."""
    deadline = Deadline(settings.request_timeout_seconds)
    ids = Ids()
    intake = Intake(ledger.submissions)
    waiting = Waiting(ledger.tasks, ledger.signals, deadline)
    acceptance = Acceptance(handlers, ids, settings)
    # Bare handlers, no Router: Litestar deep-copies a Router with all that its handlers hold.
    routes = [
        *TaskRoutes(ledger.tasks, acceptance, intake, waiting, deadline).handlers(),
        *DeadLetterRoutes(ledger.dead_letters, deadline).handlers(),
        *OutboxRoutes(ledger.outbox, deadline).handlers(),
        *KindRoutes(handlers, settings).handlers(),
        *HealthRoutes(ledger, settings.request_timeout_seconds).handlers(),
    ]
    app = Litestar(
        routes,
        middleware=[DefineMiddleware(Doorkeeper, settings=settings)],
        exception_handlers={Exception: answer},
        lifespan=[_database_time(ids, ledger, deadline)],
        # Only the document: Litestar's viewers load scripts from other sites.
        openapi_config=OpenAPIConfig(
            "Baton",
            "1",
            render_plugins=[JsonRenderPlugin()],
            openapi_router=Router(
                DOCUMENT, route_handlers=[], include_in_schema=False, before_request=_refuse_other_paths
            ),
        ),
        logging_config=None,
    )
    app.state.intake = intake
    app.state.waiting = waiting
    return app


async def _refuse_other_paths(request: Request[Any, Any, Any]) -> None:
    """Answer what is not the document like any unknown path; Litestar would answer in HTML."""
    if request.scope["path"] not in {DOCUMENT, f"{DOCUMENT}/openapi.json"}:
        raise NotFoundException


def _database_time(
    ids: Ids, ledger: Ledger, deadline: Deadline
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    async def measure() -> float:
        return await deadline(ledger.clock_offset_seconds())

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        await ids.correct(measure)
        correcting = asyncio.create_task(ids.keep_correct(measure))
        try:
            yield
        finally:
            correcting.cancel()

    return lifespan
