"""What dies in a measurement of recovery, and how soon the rest gets on with its work.

Each outage returns seconds by what they were waited for. Those that last do so for 10 seconds, so that every
back-off of those who wait has grown.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from storage.ledger import PostgresLedger
from storage.model import Priority, Submission
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.chaos.harness.scene import Scene

PARTS = ("relay-1", "relay-2", "worker-1", "worker-2", "dead-letter", "janitor", "gateway")
PATIENCE_SECONDS = 180.0
OUTAGE_SECONDS = 10.0
GATED = 8
BURST = 4_000
OTHERS_SECONDS = 2.0
"""A relay that lives is through with a batch long before: what stays leased for longer is a dead one's."""

LEASED = "SELECT array_agg(id) FROM outbox WHERE leased_until > now() AND status = 0"
STILL_THERE = "SELECT count(*)::int FROM outbox WHERE id = ANY($1::bigint[])"
DONE = "SELECT count(*)::int FROM tasks WHERE id = ANY($1::uuid[]) AND status = 3"

Measured = dict[str, float]


async def worker_killed(scene: Scene) -> Measured:
    """One of two workers."""
    tasks = await _gated(scene)
    starts = _starts(scene, tasks)
    victim = next(name for name in PARTS if scene.parts[name].pid in starts.values() and "worker" in name)
    ran = [task for task, pid in starts.items() if pid == scene.parts[victim].pid]
    killed_at = await scene.kill(victim)
    again_at = await _run_again(scene, ran)
    await scene.start(victim)
    await scene.load.cancel(tasks)
    return {"worker killed: its tasks run again": again_at - killed_at}


async def relay_killed(scene: Scene) -> Measured:
    """One of two relays, with a batch in its hand."""
    while True:
        await _burst(scene)

        async def leased() -> list[int]:
            [(ids,)] = await scene.service.database.fetch(LEASED)
            return ids or []

        await eventually(leased, seconds=PATIENCE_SECONDS)
        killed_at = await scene.kill("relay-1")
        held = await leased()

        async def published(held: Sequence[int] = tuple(held)) -> bool:
            return not await scene.count(STILL_THERE, [list(held)])

        await eventually(published, seconds=PATIENCE_SECONDS)
        seconds = time.monotonic() - killed_at
        await scene.start("relay-1")
        await scene.calm()
        if seconds > OTHERS_SECONDS:
            return {"relay killed: what it held is published": seconds}


async def broker_killed(scene: Scene) -> Measured:
    """Started again at once."""
    await scene.servers.rabbitmq.write_down()
    scene.servers.rabbitmq.kill()
    await scene.servers.rabbitmq.start()
    return {"broker killed and started: first task done": await _first_done(scene, time.monotonic())}


async def broker_stopped(scene: Scene) -> Measured:
    """An outage without a crash."""
    await scene.servers.rabbitmq.stop_app()
    await asyncio.sleep(OUTAGE_SECONDS)
    await scene.servers.rabbitmq.start_app()
    return {"broker stopped and started: first task done": await _first_done(scene, time.monotonic())}


async def database_stopped(scene: Scene) -> Measured:
    """Stopped as a crash does it."""
    await scene.servers.postgres.kill()
    await asyncio.sleep(OUTAGE_SECONDS)
    await scene.servers.postgres.start()
    back_at = time.monotonic()
    return {
        "database stopped and started: first POST answered 201": await _first_accepted(scene, back_at),
        "database stopped and started: first task done": await _first_done(scene, back_at),
    }


async def everything_killed(scene: Scene) -> Measured:
    """Every process, the broker and the database; all are started at one moment, from which it counts."""
    tasks = await _gated(scene)
    await scene.servers.rabbitmq.write_down()
    for name in PARTS:
        await scene.kill(name)
    scene.servers.rabbitmq.kill()
    await scene.servers.postgres.kill()
    began_at = time.monotonic()
    await asyncio.gather(scene.servers.postgres.start(), scene.servers.rabbitmq.start(), scene.start(*PARTS))
    measured = {
        "everything killed and started: servers and processes are up": time.monotonic() - began_at,
        "everything killed and started: first POST answered 201": await _first_accepted(scene, began_at),
        "everything killed and started: first task done": await _first_done(scene, began_at),
        "everything killed and started: the tasks of dead workers run again": await _run_again(scene, tasks)
        - began_at,
    }
    await scene.load.cancel(tasks)
    return measured


OUTAGES: dict[str, Callable[[Scene], Awaitable[Measured]]] = {
    "worker": worker_killed,
    "relay": relay_killed,
    "broker-killed": broker_killed,
    "broker-stopped": broker_stopped,
    "database": database_stopped,
    "everything": everything_killed,
}


async def _gated(scene: Scene) -> list[str]:
    """Submit tasks whose first run does not end and whose second does, and wait until all run."""
    scene.service.open_gate(2)
    tasks = [await scene.service.submit("work.gated", {}) for _ in range(GATED)]
    ids = [task["id"] for task in tasks]
    await eventually(lambda: len(_starts(scene, ids)) == GATED, seconds=PATIENCE_SECONDS)
    return ids


def _starts(scene: Scene, tasks: Sequence[str], dispatch: int = 1) -> dict[str, int]:
    """Tell which process started each task under that dispatch."""
    return {line[0]: int(line[4]) for line in _lines(scene, tasks) if int(line[1]) == dispatch}


def _lines(scene: Scene, tasks: Sequence[str]) -> list[list[str]]:
    return [line for line in scene.service.effects() if line[0] in tasks]


async def _run_again(scene: Scene, tasks: Sequence[str]) -> float:
    """Wait until the second run of each has started; when the last one did."""
    await eventually(lambda: len(_starts(scene, tasks, 2)) == len(tasks), seconds=PATIENCE_SECONDS)
    return max(float(line[3]) for line in _lines(scene, tasks) if line[1] == "2")


async def _burst(scene: Scene) -> None:
    """Give the relays something to do for a while, at once."""
    async with PostgresLedger(scene.service.database.address) as ledger:
        burst = [
            Submission(
                id=uuid.uuid4(),
                kind="work.do",
                payload="{}",
                priority=Priority.LOW,
                max_retries=3,
                timeout_seconds=30,
            )
            for _ in range(BURST)
        ]
        await ledger.submissions.submit(burst)


async def _first_accepted(scene: Scene, back_at: float) -> float:
    """Wait for the first POST that is answered 201; seconds since then."""

    def answered() -> float:
        times = [accepted.answered_at for accepted in scene.load.accepted if accepted.answered_at > back_at]
        return min(times, default=0.0)

    return await eventually(answered, seconds=PATIENCE_SECONDS) - back_at


async def _first_done(scene: Scene, back_at: float) -> float:
    """Wait for the first task, of those submitted since then, that is done; seconds since then."""

    async def done() -> int:
        since = [accepted.id for accepted in scene.load.accepted if accepted.sent_at >= back_at]
        return await scene.count(DONE, [since])

    await eventually(done, seconds=PATIENCE_SECONDS)
    return time.monotonic() - back_at
