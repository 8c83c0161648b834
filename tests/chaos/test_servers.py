"""PostgreSQL and RabbitMQ die, stop and forget; the service goes on by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.conftest import Mortal
    from tests.support.servers import RabbitmqServer, Vhost
    from tests.support.service import Service

ROLES = ("gateway", "relay", "worker", "dead-letter,janitor")
OUTAGE_SECONDS = 60.0


async def load(service: Service, until: asyncio.Event) -> list[str]:
    """Submit without pause; the ids of all 201s. An answer that is lost is the client's to repeat."""
    accepted = []
    while not until.is_set():
        try:
            response = await service.client.post(
                "/api/v1/tasks", json={"kind": "work.do", "payload": {"seconds": 0.02}}
            )
        except httpx.TransportError:
            continue
        if response.status_code == 201:
            accepted.append(response.json()["id"])
        else:
            assert response.status_code == 503, response.text
            assert "retry-after" in response.headers
    return accepted


async def under_load(service: Service, fault: Callable[[], Awaitable[None]]) -> list[str]:
    """Let a fault happen while four clients submit; the ids of all 201s."""
    until = asyncio.Event()
    clients = [asyncio.create_task(load(service, until)) for _ in range(4)]
    await eventually(service.effects)
    await fault()
    until.set()
    return [task_id for accepted in await asyncio.gather(*clients) for task_id in accepted]


async def something_starts(service: Service) -> None:
    known = len(service.effects())
    await eventually(lambda: len(service.effects()) > known, seconds=30)


async def everything_accepted_completes(service: Service, accepted: list[str]) -> None:
    async def over() -> bool:
        counts = await service.counts()
        return sum(counts.values()) == counts.get("COMPLETED", 0)

    await eventually(over, seconds=60)
    rows = await service.database.fetch("SELECT id::text FROM tasks")
    assert set(accepted) <= {task_id for (task_id,) in rows}
    await service.check()


async def test_submits_go_on_while_the_broker_is_away(mortal: Mortal) -> None:
    service = mortal.service
    for role in ROLES:
        await service.start(role)
    await service.submit("work.do", {}, wait=20)

    async def outage() -> None:
        await mortal.rabbitmq.stop_app()
        before = len((await service.client.get("/api/v1/tasks", params={"limit": 200})).json()["items"])
        await asyncio.sleep(OUTAGE_SECONDS)
        after = await service.submit("work.do", {})
        assert (await service.task(after))["status"] == "NEW"
        assert before
        await mortal.rabbitmq.start_app()

    accepted = await under_load(service, outage)
    await everything_accepted_completes(service, accepted)
    burnt = await service.database.fetch("SELECT count(*)::int FROM tasks WHERE attempt > 1")
    assert burnt == [(0,)]


async def test_a_killed_broker_loses_nothing(mortal: Mortal) -> None:
    service = mortal.service
    for role in ROLES:
        await service.start(role)
    await service.submit("work.do", {}, wait=20)

    async def crash() -> None:
        # RabbitMQ 3.10 writes down within 5 s that a quorum queue exists; killed before, it has one for which
        # it elects no leader. What this test is about are queues that have been there for longer.
        await mortal.rabbitmq.evaluate("[ok = dets:sync(Table) || Table <- dets:all()].")
        mortal.rabbitmq.kill()
        await mortal.rabbitmq.start()

    await everything_accepted_completes(service, await under_load(service, crash))


async def test_a_killed_database_loses_nothing_that_was_accepted(mortal: Mortal) -> None:
    service = mortal.service
    for role in ROLES:
        await service.start(role)
    await service.submit("work.do", {}, wait=20)

    async def crash() -> None:
        for _ in range(2):
            await mortal.postgres.kill()
            await mortal.postgres.start()
            await something_starts(service)

    await everything_accepted_completes(service, await under_load(service, crash))


async def test_a_frozen_database_kills_no_worker(mortal: Mortal) -> None:
    service = mortal.service
    for role in ROLES:
        await service.start(role, REQUEST_TIMEOUT_SECONDS="2")
    await service.submit("work.do", {}, wait=20)

    async def freeze() -> None:
        mortal.postgres.pause()
        await asyncio.sleep(8)
        mortal.postgres.resume()

    accepted = await under_load(service, freeze)
    await everything_accepted_completes(service, accepted)
    assert await service.database.fetch("SELECT sum(losses)::int FROM tasks") == [(0,)]


async def test_what_a_purged_or_deleted_queue_held_is_sent_again(
    deployed: Service, rabbitmq: Vhost, rabbitmq_server: RabbitmqServer
) -> None:
    for role in ("gateway", "relay", "dead-letter,janitor"):
        await deployed.start(role)
    tasks = [
        await deployed.submit("work.do", {}, priority=name) for name in ("HIGH", "LOW") for _ in range(20)
    ]

    async def published() -> bool:
        return (await deployed.counts()).get("PENDING") == len(tasks)

    await eventually(published)
    await rabbitmq_server.ctl("purge_queue", "-p", rabbitmq.name, "tasks.high")
    await rabbitmq_server.ctl("delete_queue", "-p", rabbitmq.name, "tasks.low")
    await deployed.start("worker")
    assert await deployed.all_ended(len(tasks)) == {"COMPLETED": len(tasks)}
    await deployed.check()
