"""The gateway over PostgreSQL, on a port of the loopback, within the process of the test."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from gateway.app import create_app
from gateway.server import serve
from gateway.settings import GatewaySettings
from pipeline.handlers import load
from pipeline.monitoring import Metrics
from storage.ledger import PostgresLedger
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage.database import Address

TASKS = "/api/v1/tasks"
PATIENCE_SECONDS = 30.0


@asynccontextmanager
async def gateway_on(address: Address, *, timeout_seconds: float = 10.0) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway whose calls, and statements, may take `timeout_seconds`."""
    stop, urls = asyncio.Event(), list[str]()
    async with PostgresLedger(address, timeout_seconds=timeout_seconds) as ledger:
        app = create_app(
            ledger, load([]), GatewaySettings(request_timeout_seconds=timeout_seconds), Metrics()
        )
        serving = asyncio.create_task(serve(app, "127.0.0.1", 0, stop, 5.0, urls.append))
        await eventually(lambda: urls or serving.done())
        limits = httpx.Limits(max_connections=None)
        try:
            async with httpx.AsyncClient(base_url=urls[0], timeout=PATIENCE_SECONDS, limits=limits) as client:
                yield client
        finally:
            stop.set()
            await serving


async def post(client: httpx.AsyncClient, key: str | None = None) -> httpx.Response:
    """Hand over a task of the kind `echo`."""
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post(TASKS, json={"kind": "echo", "payload": {"key": key}}, headers=headers)
