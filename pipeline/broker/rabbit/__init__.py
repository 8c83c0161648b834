"""The broker on RabbitMQ, 3.10 and later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from yarl import URL

from pipeline.broker import Publication
from pipeline.broker.rabbit.confirms import ConfirmChannel
from pipeline.broker.rabbit.consumer import RabbitSubscription
from pipeline.broker.rabbit.link import CONNECT_SECONDS, Link, calling
from pipeline.broker.rabbit.queues import Declarer, depth
from pipeline.broker.topology import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.broker import Delivery, Depth, Message

CONFIRM_SECONDS = 10.0
WATCH_SECONDS = 30.0


class RabbitBroker:
    """Publishes on one connection and consumes on another, each opened when first used.

    An alarm makes the broker stop reading from publishing connections; acks must not wait behind that
    (RabbitMQ documentation, "Memory and Disk Alarms").
    """

    def __init__(
        self,
        url: str,
        connection_name: str,
        *,
        confirm_seconds: float = CONFIRM_SECONDS,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        try:
            parsed = URL(url)
        except ValueError:
            raise ValueError("the broker's URL is none: amqp[s]://user:password@host:port/vhost") from None
        self._confirm_seconds = confirm_seconds
        self._watch_seconds = watch_seconds
        self._publishing = Link(parsed, f"{connection_name} publish")
        self._consuming = Link(parsed, f"{connection_name} consume")
        self._declarer = Declarer()
        self._subscriptions: list[RabbitSubscription] = []
        self._channel: ConfirmChannel | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Do nothing yet: connections are made when first used."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close within a few seconds; unsettled deliveries go back to their queues."""
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    async def ready(self) -> None:
        """Wait until there is a connection to publish on, and the broker reads from it."""
        await self._publishing.ready()

    async def publish(self, messages: Sequence[Message]) -> list[Publication]:
        """Send all at once; an answer that does not come in time is UNKNOWN. Raises BrokerUnavailable."""
        if not messages:
            return []
        async with calling(self._confirm_seconds):
            channel = await self._confirm_channel()
        before = channel.answered
        answers = await channel.publish(messages, self._confirm_seconds)
        # One queue without a leader is silent too: while others are answered, the connection is not to blame.
        if Publication.UNKNOWN in answers and channel.answered == before and not channel.closed:
            await self._doubt(channel)
        return answers

    async def declare(self, route: str) -> None:
        """Make sure the queue of a route exists. Raises UnknownRoute, QueueMismatch, BrokerUnavailable."""
        parse(route)
        async with calling(CONNECT_SECONDS):
            await self._declarer.declare(await self._publishing.usable(), route)

    async def consume(
        self, queue: str, prefetch: int, deliver: Callable[[Delivery], None]
    ) -> RabbitSubscription:
        """Consume a queue until cancelled, across reconnections. Raises UnknownRoute, BrokerUnavailable."""
        parse(queue)
        self._consuming.open()
        subscription = RabbitSubscription(
            self._consuming, self._declarer, queue, prefetch, deliver, watch_seconds=self._watch_seconds
        )
        self._subscriptions.append(subscription)
        return subscription

    async def depth(self, queue: str) -> Depth | None:
        """Count ready messages and consumers; None where the queue is missing. Raises BrokerUnavailable."""
        link = self._consuming if self._consuming.opened else self._publishing
        async with calling(CONNECT_SECONDS):
            return await depth(await link.usable(), queue)

    async def _confirm_channel(self) -> ConfirmChannel:
        connection = await self._publishing.usable()
        async with self._opening:
            if self._channel is None or self._channel.closed or self._channel.connection is not connection:
                self._channel = await ConfirmChannel.open(connection)
            return self._channel

    async def _doubt(self, channel: ConfirmChannel) -> None:
        """Leave a connection on which confirms do not come, unless an alarm explains it."""
        if not await self._publishing.blocked(channel.connection):
            self._publishing.drop(channel.connection, f"no confirm within {self._confirm_seconds:g} s")
