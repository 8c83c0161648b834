"""RabbitMQ's race of two declarations is rare; that we never begin one is certain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, cast

from pipeline.broker.rabbit.queues import Declarer

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection


class Connection:
    """Remembers what was declared on its channels, and how much of that at once."""

    def __init__(self) -> None:
        self.declared: list[str] = []
        self.under_way = 0
        self.most_under_way = 0

    def channel(self, *, publisher_confirms: bool) -> Self:
        assert not publisher_confirms
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def declare_queue(self, name: str, **_: Any) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        self.declared.append(name)


async def test_one_queue_is_declared_at_a_time_and_targets_come_first() -> None:
    declarer = Declarer()
    publish, consume = Connection(), Connection()
    routes = ("tasks.high", "tasks.medium", "tasks.low", "tasks.high.retry.1s")

    await asyncio.gather(
        *(declarer.declare(cast("AbstractConnection", consume), route) for route in routes),
        *(declarer.declare(cast("AbstractConnection", consume), route) for route in routes),
    )
    await declarer.declare(cast("AbstractConnection", publish), "tasks.low.retry.5s")

    assert consume.most_under_way == 1
    assert set(consume.declared) == {"tasks.dlq", *routes}
    assert publish.declared == ["tasks.dlq", "tasks.low", "tasks.low.retry.5s"]
