"""Procrastinate, on PostgreSQL alone."""

from typing import Any

import procrastinate

from benchmarks.peers.apps.addresses import POSTGRES

AT_ONCE = 100

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=POSTGRES))


@app.task
async def do_nothing(payload: dict[str, Any]) -> dict[str, bool]:
    """Do nothing."""
    return {"ok": True}


async def prepare() -> None:
    """Connect, and make its tables."""
    await app.open_async()
    await app.schema_manager.apply_schema_async()


async def enqueue(payload: dict[str, Any], tasks: int) -> None:
    """Defer in batches of a hundred."""
    for start in range(0, tasks, AT_ONCE):
        await do_nothing.batch_defer_async(*[{"payload": payload}] * min(AT_ONCE, tasks - start))
