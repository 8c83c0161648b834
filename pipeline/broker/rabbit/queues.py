"""Declaring and counting queues, each on a channel of its own: a refusal closes the channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiormq import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from pipeline.broker import Depth, QueueMismatch
from pipeline.broker.topology import arguments, prerequisites

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection


class Declarer:
    """Declares one queue at a time.

    RabbitMQ 3.10 may start a quorum queue twice that two clients declare at once, and then closes one's
    connection with INTERNAL_ERROR or refuses the first messages. Between processes that passes with a
    repetition; within one, three consumers that need the same dead letter queue would do it at each start.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def declare(self, connection: AbstractConnection, route: str) -> None:
        """Make sure the queue of a route exists, and first those it dead-letters to.

        Raises UnknownRoute, and QueueMismatch after having declared all that could be.
        """
        mismatches = []
        async with self._lock:
            for name in (*prerequisites(route), route):
                try:
                    await _declare(connection, name)
                except ChannelPreconditionFailed as error:
                    mismatches.append(f"queue {name} exists with other arguments: {error}")
                except ChannelAccessRefused as error:
                    mismatches.append(f"queue {name} may not be declared: {error}")
        if mismatches:
            raise QueueMismatch("; ".join(mismatches))


async def _declare(connection: AbstractConnection, name: str) -> None:
    async with connection.channel(publisher_confirms=False) as channel:
        await channel.declare_queue(name, durable=True, arguments=dict(arguments(name)))


async def depth(connection: AbstractConnection, queue: str) -> Depth | None:
    """Count a queue's ready messages and consumers; None where it does not exist."""
    try:
        async with connection.channel(publisher_confirms=False) as channel:
            counted = (await channel.declare_queue(queue, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None
    return Depth(counted.message_count or 0, counted.consumer_count or 0)
