"""PostgreSQL loses its sessions, dies, stands still, and holds locks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from storage.database import Database
from tests.chaos.harness.faults.fault import LEASE_SECONDS, Bite, Fault
from tests.support.ledgers import address_of

if TYPE_CHECKING:
    from tests.chaos.harness.faults.fault import Scene

LOCK_SECONDS = 10.0
ROWS_SECONDS = 2.5
"""Less than the lock_timeout of 3 s: who waits gets through."""

TABLES = (
    "tasks",
    "payloads",
    "task_tags",
    "results",
    "outbox",
    "idempotency_keys",
    "dead_letters",
    "workers",
    "queues",
    "audit",
    "schema_migrations",
)

_TERMINATE = """
SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'baton%'
"""
_WAITING_FOR_LOCKS = "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


async def terminate_backends(scene: Scene) -> Bite:
    """Break every session of the programs, several times."""
    ended = 0
    for _ in range(scene.rng.randint(2, 5)):
        [(count,)] = await scene.deployment.database.fetch(_TERMINATE)
        ended += count
        await asyncio.sleep(scene.rng.uniform(0.3, 1.5))
    return Bite(ended > 0, f"{ended} sessions terminated")


async def restart(scene: Scene) -> Bite:
    """End the server as a crash does, and start it again."""
    postgres = scene.deployment.postgres
    sessions = sum(program.postgres.connections for program in scene.deployment.programs.values())
    await postgres.kill()
    await asyncio.sleep(scene.rng.uniform(0.0, 3.0))
    await postgres.start()
    left = sum(program.postgres.connections for program in scene.deployment.programs.values())
    return Bite(sessions > 0, f"{sessions} connections before it, {left} just after")


async def pause(scene: Scene) -> Bite:
    """Stop every process of the server for more than a lease."""
    postgres = scene.deployment.postgres
    seconds = scene.rng.uniform(0.8, 2.0) * LEASE_SECONDS
    postgres.pause()
    try:
        asking = asyncio.create_task(scene.deployment.database.fetch("SELECT 1"))
        await asyncio.sleep(seconds)
        stood = not asking.done()
    finally:
        postgres.resume()
    await asyncio.wait([asking])
    return Bite(stood, f"no answer for {seconds:.1f} s")


async def lock_table(scene: Scene) -> Bite:
    """Hold a table for itself, as a careless migration does."""
    return await _hold(scene, f"LOCK TABLE {scene.target} IN ACCESS EXCLUSIVE MODE", LOCK_SECONDS)


async def lock_rows(scene: Scene) -> Bite:
    """Hold rows of waiting tasks for a moment."""
    rows = "SELECT FROM tasks WHERE status IN (0, 1) ORDER BY id LIMIT 200 FOR NO KEY UPDATE SKIP LOCKED"
    return await _hold(scene, f"PERFORM FROM ({rows}) held", ROWS_SECONDS)


async def _hold(scene: Scene, statement: str, seconds: float) -> Bite:
    """Run a statement in a transaction of its own, in one round trip, and keep what it holds for a while."""
    holder = Database(address_of(scene.deployment.postgres.home), size=2, timeout_seconds=60)
    block = f"DO $$ BEGIN SET LOCAL lock_timeout = '20s'; {statement}; PERFORM pg_sleep({seconds}); END $$"
    holding = asyncio.create_task(holder.fetch(block))
    most = 0
    try:
        while not holding.done():
            # The lock is known by those who wait for it.
            [(waiting,)] = await scene.deployment.database.fetch(_WAITING_FOR_LOCKS)
            most = max(most, waiting)
            await asyncio.wait([holding], timeout=0.1)
        holding.result()
    finally:
        await holder.close()
    return Bite(most > 0, f"held for {seconds:g} s, up to {most} waited")


ALONE = frozenset({"postgres"})
FAULTS = (
    Fault("terminate-backends", terminate_backends, (), ALONE),
    Fault("restart-postgres", restart, (), ALONE),
    Fault("pause-postgres", pause, (), ALONE),
    Fault("lock-table", lock_table, TABLES, ALONE),
    Fault("lock-rows", lock_rows, (), ALONE),
)
