"""A task that takes its worker along is found, and whoever stood beside it completes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.service import Process, Service

INNOCENT = 200
SLOTS = "64"


async def supervise(service: Service) -> Process:
    """Start a worker again whenever it has ended; the one that was running when all tasks had ended."""
    while True:
        worker = await service.start("worker", WORKER_CONCURRENCY=SLOTS)
        ending = asyncio.create_task(worker.process.wait())
        while not ending.done():
            await asyncio.wait({ending}, timeout=0.2)
            counts = await service.counts()
            if counts.get("COMPLETED", 0) + counts.get("FAILED", 0) == INNOCENT + 1:
                ending.cancel()
                return worker


@pytest.mark.parametrize(("kind", "code"), [("work.exit", 3), ("work.segfault", -11)])
async def test_one_of_201_kills_the_worker_and_200_complete(deployed: Service, kind: str, code: int) -> None:
    await deployed.start("gateway,relay,janitor")
    half = [{"kind": "work.do", "payload": {"seconds": 0.4}} for _ in range(INNOCENT // 2)]
    batch = [*half, {"kind": kind, "payload": {"seconds": 0.2}}, *half]
    response = await deployed.client.post("/api/v1/tasks/batch", json={"tasks": batch})
    assert response.status_code == 201, response.text
    tasks = response.json()["items"]

    async def published() -> bool:
        return (await deployed.counts()).get("PENDING") == len(batch)

    await eventually(published)
    async with asyncio.timeout(240):
        last = await supervise(deployed)

    assert await deployed.all_ended(len(batch)) == {"COMPLETED": INNOCENT, "FAILED": 1}
    guilty = await deployed.task(tasks[INNOCENT // 2])
    assert (guilty["status"], guilty["reason"], guilty["losses"]) == ("FAILED", "kills-worker", 2)
    *killed, living = deployed.processes("worker")
    assert living is last
    assert [process.process.returncode for process in killed] == [code, code]
    beside = await deployed.database.fetch("SELECT losses FROM tasks WHERE status = 3")
    losses = Counter(count for (count,) in beside)
    assert losses[1] + losses[2] >= int(SLOTS) // 4, "hardly anybody stood beside it"
    await deployed.check()
