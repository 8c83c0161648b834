"""The gateway over PostgreSQL, on a port of the loopback, within the process of the test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from gateway.app import create_app
from gateway.settings import GatewaySettings
from pipeline.handlers import load
from pipeline.monitoring import Metrics
from storage.ledger import PostgresLedger
from tests.support.gateway import on_a_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage.database import Address

TASKS = "/api/v1/tasks"
PATIENCE_SECONDS = 30.0


@asynccontextmanager
async def gateway_on(address: Address, *, timeout_seconds: float = 10.0) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway whose calls, and statements, may take `timeout_seconds`."""
    async with PostgresLedger(address, timeout_seconds=timeout_seconds) as ledger:
        app = create_app(
            ledger, load([]), GatewaySettings(request_timeout_seconds=timeout_seconds), Metrics()
        )
        limits = httpx.Limits(max_connections=None)
        async with (
            on_a_port(app) as (url, _, _),
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, limits=limits) as client,
        ):
            yield client


async def post(client: httpx.AsyncClient, key: str | None = None) -> httpx.Response:
    """Hand over a task of the kind `echo`."""
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post(TASKS, json={"kind": "echo", "payload": {"key": key}}, headers=headers)
