"""Workers that live under more work than the machine can do: none of them may be declared dead."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from storage.ledger import PostgresLedger
from storage.model import Priority, Submission
from tests.chaos.harness.scene import set_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.chaos.harness.scene import Scene

PARTS = ("relay", "worker-1", "worker-2", "worker-3", "dead-letter", "janitor", "gateway")
BACKLOG = 2_000
BATCH = 500
LOOK_SECONDS = 1.0
SPINNING_SHARE = 20
"""One task of so many spins in a thread: it holds up the loop of its worker, and with it the heartbeat."""

SILENCE = """SELECT coalesce(max(extract(epoch FROM clock_timestamp() - last_seen)), 0)::float8
             FROM workers WHERE dead_at IS NULL"""
WAITING = "SELECT count(*)::int FROM tasks WHERE status < 2"
ENDED = "SELECT count(*)::int FROM tasks WHERE status = 3"
LOSSES = "SELECT coalesce(sum(losses), 0)::int FROM tasks"


async def watch_over(folder: Path, minutes: float) -> dict[str, Any]:
    """Keep three workers and all cores busy for that long; what was declared dead and lost meanwhile."""
    longest_silence_seconds = 0.0
    async with set_up(folder, *PARTS) as scene, _busy_cores(), _backlog(scene):
        origin = await scene.servers.origin()
        until = time.monotonic() + minutes * 60
        while time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
            [(silence_seconds,)] = await scene.service.database.fetch(SILENCE)
            longest_silence_seconds = max(longest_silence_seconds, silence_seconds)
        report = {
            **origin,
            "minutes": minutes,
            "workers": sum("worker" in part for part in PARTS),
            "tasks": await scene.count(ENDED),
            "longest_silence_seconds": round(longest_silence_seconds, 1),
            "declared_dead": scene.said("janitor", "worker declared dead"),
            "losses": await scene.count(LOSSES),
        }
    print(f"recovery: {report}")
    return report


@asynccontextmanager
async def _busy_cores() -> AsyncIterator[None]:
    """Let as many processes as there are cores do nothing, as fast as they can."""
    spin = ("setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-c", "while True: pass")
    spinning = [await asyncio.create_subprocess_exec(*spin) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _backlog(scene: Scene) -> AsyncIterator[None]:
    """Let tasks wait all the time, so that every worker has all it can carry."""
    submitting = asyncio.create_task(_submit(scene))
    try:
        yield
    finally:
        submitting.cancel()
        await asyncio.wait({submitting})


async def _submit(scene: Scene) -> None:
    async with PostgresLedger(scene.service.database.address) as ledger:
        while True:
            if await scene.count(WAITING) < BACKLOG:
                await ledger.submissions.submit([_task() for _ in range(BATCH)])
            else:
                await asyncio.sleep(LOOK_SECONDS / 10)


def _task() -> Submission:
    kind = "work.do" if random.randrange(SPINNING_SHARE) else "work.spin"
    return Submission(
        id=uuid.uuid4(),
        kind=kind,
        payload=f'{{"seconds": {random.uniform(0, 0.2):.3f}}}',
        priority=random.choice(list(Priority)),
        max_retries=3,
        timeout_seconds=60,
    )
