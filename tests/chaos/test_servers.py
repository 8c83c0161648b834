"""PostgreSQL and RabbitMQ die, stop and forget; the service goes on by itself."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.rabbitmq_node import RabbitmqNode
    from tests.support.servers import OwnPostgres, RabbitmqServer, Vhost
    from tests.support.service import Service

OUTAGE_SECONDS = 60.0
FROZEN_SECONDS = 8.0  # two leases, and more


async def load(service: Service, until: asyncio.Event, *, wait: int, may_refuse: bool) -> list[str]:
    """Submit without pause; the ids of all 201s. An answer that is lost is the client's to repeat."""
    accepted = []
    while not until.is_set():
        try:
            response = await service.client.post(
                "/api/v1/tasks",
                params={"wait": wait},
                json={"kind": "work.do", "payload": {"seconds": 0.02}},
            )
        except httpx.TransportError:
            continue
        if response.status_code == 201:
            accepted.append(response.json()["id"])
        else:
            assert may_refuse, response.text
            assert response.status_code == 503, response.text
            assert "retry-after" in response.headers
    return accepted


async def under_load(
    service: Service, fault: Callable[[], Awaitable[None]], *, wait: int = 0, may_refuse: bool = False
) -> list[str]:
    """Let a fault happen while four clients submit; the ids of all 201s."""
    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        clients = [
            group.create_task(load(service, until, wait=wait, may_refuse=may_refuse)) for _ in range(4)
        ]
        await eventually(service.effects)
        await fault()
        until.set()
    return [task_id for client in clients for task_id in client.result()]


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


async def test_submits_go_on_while_the_broker_is_away(
    on_own_rabbitmq: tuple[Service, RabbitmqNode],
) -> None:
    service, rabbitmq = on_own_rabbitmq
    await service.start_all()

    async def outage() -> None:
        await rabbitmq.stop_app()
        await asyncio.sleep(OUTAGE_SECONDS)
        after = await service.submit("work.do", {})
        assert (await service.task(after))["status"] == "NEW"
        await rabbitmq.start_app()

    # Each client waits a second for the outcome that does not come, or there would be minutes of work to do.
    accepted = await under_load(service, outage, wait=1)
    await everything_accepted_completes(service, accepted)
    burnt = await service.database.fetch("SELECT count(*)::int FROM tasks WHERE attempt > 1")
    assert burnt == [(0,)]


async def test_a_killed_broker_loses_nothing(on_own_rabbitmq: tuple[Service, RabbitmqNode]) -> None:
    service, rabbitmq = on_own_rabbitmq
    await service.start_all()

    async def crash() -> None:
        # What this test is about are queues that have been there for longer.
        await rabbitmq.write_down()
        rabbitmq.kill()
        await rabbitmq.start()

    await everything_accepted_completes(service, await under_load(service, crash, wait=1))


async def test_a_killed_database_loses_nothing_that_was_accepted(
    on_own_postgres: tuple[Service, OwnPostgres],
) -> None:
    service, postgres = on_own_postgres
    await service.start_all()

    async def crash() -> None:
        for _ in range(2):
            await postgres.kill()
            await postgres.start()
            await something_starts(service)

    accepted = await under_load(service, crash, may_refuse=True)
    await everything_accepted_completes(service, accepted)


async def test_a_frozen_database_kills_no_worker(on_own_postgres: tuple[Service, OwnPostgres]) -> None:
    service, postgres = on_own_postgres
    await service.start_all(REQUEST_TIMEOUT_SECONDS="2")

    [worker] = service.processes("worker")

    async def freeze() -> None:
        # At the thaw a heartbeat that waits too would win the race against what the janitor has asked.
        worker.signal(signal.SIGSTOP)
        postgres.pause()
        await asyncio.sleep(FROZEN_SECONDS)
        postgres.resume()
        await service.submit("work.do", {})
        worker.signal(signal.SIGCONT)

    accepted = await under_load(service, freeze, may_refuse=True)
    await everything_accepted_completes(service, accepted)
    assert await service.database.fetch("SELECT sum(losses)::int FROM tasks") == [(0,)]
    assert "declared dead" not in worker.text()


async def test_what_a_purged_or_deleted_queue_held_is_sent_again(
    deployed: Service, rabbitmq: Vhost, rabbitmq_server: RabbitmqServer
) -> None:
    await deployed.start("gateway,relay")
    tasks = [
        await deployed.submit("work.do", {}, priority=name) for name in ("HIGH", "LOW") for _ in range(20)
    ]

    async def published() -> bool:
        return (await deployed.counts()).get("PENDING") == len(tasks)

    await eventually(published)
    await rabbitmq_server.ctl("purge_queue", "-p", rabbitmq.name, "tasks.high")
    await rabbitmq_server.ctl("delete_queue", "-p", rabbitmq.name, "tasks.low")
    # Nobody waits until tasks have been gone for long; a janitor that starts now looks at once, and again.
    await deployed.database.fetch("UPDATE tasks SET queued_at = queued_at - interval '1 minute' RETURNING 1")
    await deployed.start("worker,janitor")
    assert await deployed.all_ended(len(tasks)) == {"COMPLETED": len(tasks)}
    await deployed.check()
