"""What outbox and RabbitMQ may do to a relay: no row is passed over, none leaves without a queue's ack."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aio_pika
import pytest_asyncio

from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.topology import arguments
from pipeline.stages import PollOutbox, Publish, Settle
from storage.ledger import PostgresLedger
from storage.model import Priority
from tests.support.builders import submission
from tests.support.ledgers import connected, migrated
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aio_pika.abc import AbstractChannel

    from storage.database import Address, Database
    from storage.model import OutboxRow, Submission
    from tests.support import servers
    from tests.support.servers import Vhost

QUEUE = "tasks.medium"
MOST_ATTEMPTS = 3
ROWS = "SELECT status::int, attempts, count(*)::int FROM outbox GROUP BY 1, 2 ORDER BY 1, 2"
STATUSES = "SELECT status::int, coalesce(reason, ''), count(*)::int FROM tasks GROUP BY 1, 2 ORDER BY 1"


class Relay:
    """One relay, batch by batch; it keeps what a relay keeps between two batches."""

    def __init__(self, ledger: PostgresLedger, broker: RabbitBroker, watch: Database) -> None:
        self.ledger = ledger
        self.watch = watch
        self._poll = PollOutbox(ledger.outbox, ledger.signals, batch_size=1000)
        self._publish = Publish(broker, ledger.outbox.capacity)
        self._settle = Settle(ledger.outbox, MOST_ATTEMPTS)

    async def submit(self, count: int, **fields: object) -> list[Submission]:
        group = [submission(**fields) for _ in range(count)]
        await self.ledger.submissions.submit(group)
        return group

    async def carry(self) -> list[OutboxRow]:
        """Take what is due to the broker; the rows."""
        async with asyncio.timeout(20.0):
            parcel = await self._poll.pull()
            assert parcel is not None
            await self._settle(await self._publish(parcel.body))
            await self._settle.drain(10.0)
        return parcel.body

    async def carry_again(self) -> list[OutboxRow]:
        """Likewise, without waiting until what was put off is due."""
        await self.watch.fetch("UPDATE outbox SET available_at = now() RETURNING 1")
        return await self.carry()


@pytest_asyncio.fixture
async def relay(ledger_database: Address, rabbitmq: Vhost) -> AsyncIterator[Relay]:
    async with (
        PostgresLedger(ledger_database) as ledger,
        RabbitBroker(rabbitmq.url, "relay") as broker,
        connected(ledger_database) as watch,
    ):
        relaying = Relay(ledger, broker, watch)
        async with relaying._poll:
            yield relaying


async def operate(vhost: Vhost, act: Callable[[AbstractChannel], Awaitable[object]]) -> None:
    async with await aio_pika.connect(vhost.url) as connection, connection.channel() as channel:
        await act(channel)


async def purge(channel: AbstractChannel) -> None:
    await (await channel.get_queue(QUEUE)).purge()


async def holds(vhost: Vhost, messages: int) -> None:
    async def counted() -> bool:
        return (await vhost.queue_depths())[QUEUE].ready == messages

    await eventually(counted)


async def test_a_row_with_a_low_id_that_is_committed_late_is_not_passed_over(
    relay: Relay, postgres: servers.Database
) -> None:
    late = await postgres.connect()
    await late.execute("BEGIN")
    await late.execute("SELECT baton_enqueue('echo')::text")
    await relay.submit(3)
    before = await relay.carry()
    await late.execute("COMMIT")

    [row] = await relay.carry()
    assert row.id < min(earlier.id for earlier in before)
    assert await relay.watch.fetch(STATUSES) == [(1, "", 4)]
    late.close()


async def test_relays_that_poll_at_once_share_the_rows_and_take_no_more_than_they_ask(
    postgres: servers.Database,
) -> None:
    address = await migrated(postgres)
    async with PostgresLedger(address, pool_size=8) as ledger, connected(address) as operator:
        await operator.script("ANALYZE outbox")  # the planner believes that there are none
        await operator.script(
            """INSERT INTO outbox (task_id, dispatch, priority, route)
               SELECT gen_random_uuid(), 1, 1 + n % 3, 'tasks.low' FROM generate_series(1, 6000) n"""
        )

        async def drain() -> list[int]:
            taken: list[int] = []
            while rows := await ledger.outbox.poll(50, 60.0):
                assert len(rows) <= 50
                taken += [row.id for row in rows]
            return taken

        shares = await asyncio.gather(*(drain() for _ in range(8)))
    assert sum(map(len, shares)) == len(set().union(*shares)) == 6000
    assert len([share for share in shares if share]) == 8


async def test_a_queue_that_is_gone_is_declared_again_and_no_row_leaves_before(
    relay: Relay, rabbitmq: Vhost
) -> None:
    await relay.submit(1)
    await relay.carry()
    await holds(rabbitmq, 1)
    await operate(rabbitmq, lambda channel: channel.queue_delete(QUEUE))

    await relay.submit(5)
    await relay.carry()

    await holds(rabbitmq, 5)
    assert await relay.watch.fetch(ROWS) == []
    assert await relay.watch.fetch(STATUSES) == [(1, "", 6)]


async def test_what_a_full_queue_refuses_stays_and_costs_no_attempt(relay: Relay, rabbitmq: Vhost) -> None:
    full = arguments(QUEUE) | {"x-max-length": 5, "x-overflow": "reject-publish"}
    await operate(rabbitmq, lambda channel: channel.declare_queue(QUEUE, durable=True, arguments=dict(full)))
    await relay.submit(10)
    await relay.carry()
    await relay.submit(30)
    await relay.carry()
    [(status, attempts, left)] = await relay.watch.fetch(ROWS)
    assert (status, attempts) == (0, 0)
    await holds(rabbitmq, 40 - left)

    for _ in range(40):
        if not await relay.watch.fetch(ROWS):
            break
        await operate(rabbitmq, purge)
        assert await relay.watch.fetch("SELECT sum(attempts)::int FROM outbox") == [(0,)]
        await relay.carry_again()
    assert await relay.watch.fetch(STATUSES) == [(1, "", 40)]


async def test_rows_that_no_queue_can_take_hold_up_no_other_and_end_visibly(relay: Relay) -> None:
    await relay.submit(200)
    bad = [one.id for one in await relay.submit(2)]
    for task_id, route in zip(bad, ("tasks.nonsense", "tasks." + "x" * 300), strict=True):
        await relay.watch.fetch(
            "UPDATE outbox SET route = $2 WHERE task_id = $1 RETURNING 1", [task_id, route]
        )

    assert len(await relay.carry()) == 202
    assert await relay.watch.fetch(ROWS) == [(0, 1, 2)]
    assert await relay.watch.fetch(STATUSES) == [(0, "", 2), (1, "", 200)]

    for _ in range(MOST_ATTEMPTS - 1):
        await relay.carry_again()
    assert await relay.watch.fetch(ROWS) == [(0, 0, 2), (1, MOST_ATTEMPTS, 2)]
    assert await relay.watch.fetch(STATUSES) == [(1, "", 200), (4, "undeliverable", 2)]


async def test_high_is_in_the_first_batch_behind_a_backlog_of_low(relay: Relay) -> None:
    await relay.watch.script(
        """INSERT INTO outbox (task_id, dispatch, priority, route, available_at)
           SELECT gen_random_uuid(), 1, 3, 'tasks.low', now() - interval '1 hour'
           FROM generate_series(1, 50000)"""
    )
    [urgent] = await relay.submit(1, priority=Priority.HIGH)

    assert urgent.id in [row.task_id for row in await relay.ledger.outbox.poll(500, 60.0)]
