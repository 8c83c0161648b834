"""A relay dies at a named point: what it had leased is sent by the next one, and starts once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.topology import DLQ
from storage.ledger import PostgresLedger
from storage.model import Caller
from tests.chaos.harness.crash import (
    Crash,
    Shown,
    at_rest,
    expire_row_leases,
    hand_over,
    holds,
    outbox,
    queues,
    shown,
)
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.servers import Vhost
    from tests.support.service import Service

WORK = "tasks.medium"
RETRY = "tasks.medium.retry.1s"


async def declare(rabbitmq: Vhost, route: str) -> None:
    """Let a queue be there already, or the first message to it would be returned."""
    async with RabbitBroker(rabbitmq.url, "test") as broker:
        await broker.declare(route)


async def test_a_relay_that_dies_with_leased_rows_keeps_them_for_a_lease(
    deployed: Service, rabbitmq: Vhost
) -> None:
    await declare(rabbitmq, WORK)
    task = await hand_over(deployed, "work.do")
    relay = Crash(deployed, "relay.after_poll", "relay")
    await relay.start()
    async with relay.there():
        assert await shown(deployed, task) == Shown("NEW", 1)
        assert await outbox(deployed) == [(1, WORK, True)]
        await holds(rabbitmq, WORK, ready=0)
    await expire_row_leases(deployed)
    await relay.start()
    await deployed.start("worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))
    await at_rest(deployed, rabbitmq)


@pytest.mark.parametrize("point", ["relay.after_send", "relay.after_confirm"])
async def test_what_was_published_and_not_settled_is_published_again_and_starts_once(
    deployed: Service, rabbitmq: Vhost, point: str
) -> None:
    await declare(rabbitmq, WORK)
    task = await hand_over(deployed, "work.do")
    relay = Crash(deployed, point, "relay")
    await relay.start()
    async with relay.there():
        await holds(rabbitmq, WORK, ready=1)
        assert await shown(deployed, task) == Shown("NEW", 1)
        assert await outbox(deployed) == [(1, WORK, True)]
    await expire_row_leases(deployed)
    await relay.start()
    await holds(rabbitmq, WORK, ready=2)
    await deployed.start("worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))


async def test_a_task_that_has_ended_before_its_row_was_settled_stays_ended(
    deployed: Service, rabbitmq: Vhost
) -> None:
    await declare(rabbitmq, WORK)
    await deployed.start("worker")
    task = await hand_over(deployed, "work.do")
    relay = Crash(deployed, "relay.after_confirm", "relay")
    await relay.start()
    async with relay.there():
        assert await deployed.all_ended(1) == {"COMPLETED": 1}
        assert await outbox(deployed) == [(1, WORK, True)]
    await expire_row_leases(deployed)
    await relay.start()
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))


async def test_a_settled_row_leaves_the_task_to_the_broker(deployed: Service, rabbitmq: Vhost) -> None:
    task = await hand_over(deployed, "work.do")
    relay = Crash(deployed, "relay.after_settle", "relay")
    await relay.start()
    async with relay.there():
        assert await shown(deployed, task) == Shown("PENDING", 1)
        assert await outbox(deployed) == []
        await holds(rabbitmq, WORK, ready=1)
    await deployed.start("worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await relay.start()
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))


async def test_a_retry_that_was_published_and_not_settled_is_neither_early_nor_run_twice(
    deployed: Service, rabbitmq: Vhost
) -> None:
    await declare(rabbitmq, RETRY)
    await deployed.start("worker")
    task = await hand_over(deployed, "work.fail", max_retries=1)
    relay = Crash(deployed, "relay.after_confirm_of_retry", "relay")
    await relay.start()
    async with relay.there():
        # The row of the first hand-over lingers for 50 ms after its confirm, and may still be there.
        rows = await outbox(deployed)
        assert rows in ([(2, RETRY, True)], [(1, WORK, True), (2, RETRY, True)])
    await expire_row_leases(deployed)
    await relay.start()
    assert await deployed.all_ended(1) == {"FAILED": 1}
    await at_rest(deployed, rabbitmq, notices=1)
    assert await shown(deployed, task) == Shown("FAILED", 2, attempt=2, starts=(1, 2))
    first, second = (float(line[3]) for line in deployed.starts(task))
    assert second - first >= 1.0


async def attempts(service: Service) -> list[tuple[Any, ...]]:
    return await service.database.fetch("SELECT status::int, attempts FROM outbox ORDER BY id")


async def test_a_return_that_was_not_answered_costs_nothing(deployed: Service, rabbitmq: Vhost) -> None:
    task = await hand_over(deployed, "work.do")
    relay = Crash(deployed, "relay.before_declare", "relay")
    await relay.start(OUTBOX_MAX_ATTEMPTS="1")
    async with relay.there():
        assert await queues(rabbitmq) == {}
        assert await outbox(deployed) == [(1, WORK, True)]
        assert await attempts(deployed) == [(0, 0)]
    await expire_row_leases(deployed)
    await relay.start()
    await deployed.start("worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))


@pytest.mark.parametrize(
    ("point", "counted"), [("relay.before_returned", False), ("relay.after_returned", True)]
)
async def test_a_return_is_counted_once_with_all_that_follows(
    deployed: Service, rabbitmq: Vhost, point: str, *, counted: bool
) -> None:
    async def only_the_failed_row() -> bool:
        return await attempts(deployed) == [(1, 1)]

    task = await hand_over(deployed, "work.do")
    await deployed.database.fetch("UPDATE outbox SET route = 'nowhere' RETURNING 1")
    relay = Crash(deployed, point, "relay")
    await relay.start(OUTBOX_MAX_ATTEMPTS="1")
    async with relay.there():
        if counted:
            # The rest of the relay goes on: killed while it sends the notice, it would have it sent twice.
            await eventually(only_the_failed_row)
            await holds(rabbitmq, DLQ, ready=1)
        else:
            assert await attempts(deployed) == [(0, 0)]
        assert await shown(deployed, task) == Shown("FAILED" if counted else "NEW", 1)
    await expire_row_leases(deployed)
    await relay.start()
    assert await deployed.all_ended(1) == {"FAILED": 1}
    assert await deployed.database.fetch("SELECT reason FROM dead_letters") == [("undeliverable",)]
    await eventually(only_the_failed_row)
    async with PostgresLedger(deployed.database.address) as ledger:
        [(row_id,)] = await deployed.database.fetch("SELECT id FROM outbox")
        await ledger.outbox.retry(Caller(), row_id)
    await deployed.start("worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq, notices=1)
    assert await shown(deployed, task) == Shown("COMPLETED", 2, starts=(2,))
