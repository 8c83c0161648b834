"""Priorities under load: the urgent start soon, the patient start too."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from storage.ledger import PostgresLedger
from storage.model import Priority, Submission
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.service import Service

BEHIND = 100_000
SLOTS = "8"


async def preload(service: Service, priority: Priority, count: int, note: str) -> None:
    """Accept many tasks as the gateway does, without the HTTP."""
    async with PostgresLedger(service.database.address) as ledger:
        for start in range(0, count, 500):
            group = [
                Submission(
                    id=uuid.uuid4(),
                    kind="work.do",
                    payload=f'{{"seconds":0.01,"note":"{note}"}}',
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
    await eventually(lambda: published(deployed), seconds=120)
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
    assert (await deployed.counts())["PENDING"] > BEHIND / 2, "LOW was not behind all the time"


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
