"""Taskiq on RabbitMQ (taskiq-aio-pika), results in PostgreSQL (taskiq-postgres)."""

import asyncio
from typing import Any

from taskiq_aio_pika import AioPikaBroker
from taskiq_pg.asyncpg import AsyncpgResultBackend

from benchmarks.peers.apps.addresses import AMQP, POSTGRES

AT_ONCE = 100

results = AsyncpgResultBackend(dsn=POSTGRES, table_name="taskiq_results")
broker = AioPikaBroker(AMQP, qos=100).with_result_backend(results)


@broker.task
async def do_nothing(payload: dict[str, Any]) -> dict[str, bool]:
    """Do nothing."""
    return {"ok": True}


async def prepare() -> None:
    """Connect; that makes queue and table."""
    await broker.startup()


async def enqueue(payload: dict[str, Any], tasks: int) -> None:
    """Send a hundred at once."""
    for start in range(0, tasks, AT_ONCE):
        await asyncio.gather(*(do_nothing.kiq(payload) for _ in range(min(AT_ONCE, tasks - start))))
