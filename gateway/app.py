"""The gateway as one Litestar application; everything it needs is handed in."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from litestar import Litestar
from litestar.middleware import DefineMiddleware

from gateway.admission import Admission
from gateway.auth import Doorkeeper
from gateway.batches import BatchRoutes
from gateway.calls import options
from gateway.dead_letters import DeadLetterRoutes
from gateway.deadline import Deadline
from gateway.docs import DocsRoutes
from gateway.health import HealthRoutes
from gateway.ids import Ids
from gateway.intake import Intake
from gateway.kinds import KindRoutes
from gateway.openapi import Document
from gateway.outbox import OutboxRoutes
from gateway.payloads import Acceptance
from gateway.problems import answer
from gateway.tasks import TaskRoutes
from gateway.waiting import Waiting
from pipeline.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from gateway.settings import GatewaySettings
    from pipeline.handlers import Handler
    from pipeline.monitoring import Metrics
    from pipeline.ports import Ledger


def create_app(
    ledger: Ledger, handlers: Mapping[str, Handler[..., Any]], settings: GatewaySettings, metrics: Metrics
) -> Litestar:
    """Wire the gateway.

    `app.state` has its `intake` and `waiting` room, for whoever stops it, and how long a request may take.
    """
    deadline = Deadline(settings.request_timeout_seconds)
    ids = Ids()
    admission = Admission(ledger.submissions, settings.max_waiting_tasks, MonotonicClock(), metrics)
    intake = Intake(ledger.submissions, admission)
    waiting = Waiting(ledger.tasks, ledger.signals, deadline)
    acceptance = Acceptance(handlers, ids, settings)
    # Bare handlers, no Router: Litestar deep-copies a Router with all that its handlers hold.
    routes = [
        *TaskRoutes(ledger.tasks, acceptance, intake, waiting, deadline).handlers(),
        *BatchRoutes(ledger.tasks, acceptance, intake, deadline).handlers(),
        *DeadLetterRoutes(ledger.dead_letters, deadline).handlers(),
        *OutboxRoutes(ledger.outbox, deadline).handlers(),
        *KindRoutes(handlers, settings).handlers(),
        *HealthRoutes(ledger, settings.request_timeout_seconds).handlers(),
    ]
    routes += DocsRoutes(Document(routes, handlers, settings).build()).handlers()
    app = Litestar(
        [*options(routes), *routes],
        middleware=[DefineMiddleware(Doorkeeper, settings=settings)],
        exception_handlers={Exception: answer},
        lifespan=[_database_time(ids, ledger, deadline)],
        # Litestar's own document would be empty: the handlers read the requests themselves.
        openapi_config=None,
        logging_config=None,
    )
    app.state.intake = intake
    app.state.waiting = waiting
    app.state.request_timeout_seconds = settings.request_timeout_seconds
    return app


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
