"""Fairness under load: the urgent start soon, the patient start too, no worker gets more than its share."""

from __future__ import annotations

import uuid
from operator import itemgetter
from statistics import mean
from typing import TYPE_CHECKING

from storage.ledger import PostgresLedger
from storage.model import Priority, Submission
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.service import Service

BEHIND = 100_000
SLOTS = "8"


async def preload(service: Service, priority: Priority, count: int, note: str, seconds: float = 0.01) -> None:
    """Accept many tasks as the gateway does, without the HTTP."""
    async with PostgresLedger(service.database.address) as ledger:
        for start in range(0, count, 500):
            group = [
                Submission(
                    id=uuid.uuid4(),
                    kind="work.do",
                    payload=f'{{"seconds":{seconds},"note":"{note}"}}',
                    priority=priority,
                    max_retries=3,
                    timeout_seconds=30,
                )
                for _ in range(min(500, count - start))
            ]
            await ledger.submissions.submit(group)


async def published(service: Service) -> bool:
    return await service.database.fetch("SELECT id FROM outbox LIMIT 1") == []


async def test_high_starts_within_a_second_behind_100_000_low(deployed: Service) -> None:
    await deployed.start("gateway,relay")
    await preload(deployed, Priority.LOW, BEHIND, "low")

    async def broker_holds_many() -> bool:
        return (await deployed.counts()).get("PENDING", 0) >= BEHIND / 10

    await eventually(broker_holds_many, seconds=60)
    await deployed.start("worker", WORKER_CONCURRENCY=SLOTS, LOG_LEVEL="warning")
    await eventually(lambda: len(deployed.effects()) > 200, seconds=60)
    for _ in range(200):
        await deployed.submit("work.do", {"note": "high"}, priority="HIGH")

    async def ended() -> bool:
        query = "SELECT count(*)::int FROM tasks WHERE priority = 1 AND status = 3"
        return await deployed.database.fetch(query) == [(200,)]

    await eventually(ended, seconds=60)
    [(p99,)] = await deployed.database.fetch("""
        SELECT percentile_disc(0.99) WITHIN GROUP (ORDER BY waited::float8)
        FROM (SELECT extract(epoch FROM started_at - created_at) AS waited
              FROM tasks WHERE priority = 1) high""")
    assert p99 < 1.0
    counts = await deployed.counts()
    assert counts.get("PENDING", 0) + counts.get("NEW", 0) > BEHIND / 2, "LOW was not behind all the time"


async def test_low_keeps_its_share_under_high_load(deployed: Service) -> None:
    await deployed.start("relay")
    await preload(deployed, Priority.HIGH, 4_000, "high")
    await preload(deployed, Priority.LOW, 4_000, "low")
    await eventually(lambda: published(deployed), seconds=60)
    await deployed.start("worker", WORKER_CONCURRENCY=SLOTS, LOG_LEVEL="warning")
    await eventually(lambda: len(deployed.effects()) >= 2_000, seconds=60)
    first = [line[2] for line in deployed.effects()[:2_000]]
    assert first.count("low") >= 100
    assert first.count("high") > first.count("low")


async def test_four_workers_with_tasks_of_a_second_end_together(deployed: Service) -> None:
    for _ in range(4):
        await deployed.start("worker", WORKER_CONCURRENCY="16", LOG_LEVEL="warning")
    await eventually(lambda: all_up(deployed, 4), seconds=60)
    await deployed.start("relay")
    await preload(deployed, Priority.MEDIUM, 640, "long", seconds=1)
    assert await deployed.all_ended(640, seconds=120) == {"COMPLETED": 640}
    started_at = [(line[4], float(line[3])) for line in deployed.effects()]
    first = min(at for _, at in started_at)
    ended_at = {worker: at + 1 - first for worker, at in sorted(started_at, key=itemgetter(1))}
    assert len(ended_at) == 4
    assert max(ended_at.values()) <= 1.2 * mean(ended_at.values())


async def all_up(service: Service, workers: int) -> bool:
    return await service.database.fetch("SELECT count(*)::int FROM workers") == [(workers,)]
