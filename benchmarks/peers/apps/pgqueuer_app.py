"""PgQueuer, on PostgreSQL alone. `python -m benchmarks.peers.apps.pgqueuer_app` is its worker.

Its own `pgq run` fails at its start with the Typer it installs, so the queue manager is run directly.
"""

import json
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

from benchmarks.peers.apps.addresses import POSTGRES

AT_ONCE = 100

queries: list[Queries] = []


async def prepare() -> None:
    """Connect, and make its tables."""
    queries.append(Queries(AsyncpgDriver(await asyncpg.connect(POSTGRES))))
    await queries[0].install()


async def enqueue(payload: dict[str, Any], tasks: int) -> None:
    """Enqueue in batches of a hundred."""
    body = json.dumps(payload).encode()
    for start in range(0, tasks, AT_ONCE):
        number = min(AT_ONCE, tasks - start)
        await queries[0].enqueue(["do_nothing"] * number, [body] * number, [0] * number)


async def work() -> None:
    """Work until told to stop."""
    worker = PgQueuer(AsyncpgDriver(await asyncpg.connect(POSTGRES)))

    @worker.entrypoint("do_nothing")
    async def do_nothing(job: Job) -> None:
        """Do nothing."""

    await worker.run(batch_size=AT_ONCE)


if __name__ == "__main__":
    uvloop.run(work())
