"""A consumer that outlives its channels."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from pipeline.broker import BrokerUnavailable, QueueMismatch
from pipeline.broker.rabbit.link import CLOSE_SECONDS, CONNECT_SECONDS, calling, end, pauses_seconds
from pipeline.broker.rabbit.queues import depth
from pipeline.broker.rabbit.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_pika.abc import AbstractConnection
    from aiormq.abc import DeliveredMessage

    from pipeline.broker import Delivery
    from pipeline.broker.rabbit.link import Link
    from pipeline.broker.rabbit.queues import Declarer

log = structlog.get_logger()

LOOKS_BEFORE_ANEW = 2
"""How often in a row messages must be ready and none delivered: once may be a matter of timing."""


class RabbitSubscription:
    """Consumes a queue on a channel of its own, and on another one whenever that ends."""

    def __init__(
        self,
        link: Link,
        declarer: Declarer,
        queue: str,
        prefetch: int,
        deliver: Callable[[Delivery], None],
        *,
        watch_seconds: float,
    ) -> None:
        self._link = link
        self._declarer = declarer
        self._queue = queue
        self._prefetch = prefetch
        self._deliver = deliver
        self._watch_seconds = watch_seconds
        self._session: Session | None = None
        self._attached = False
        self._detached_at: float | None = None
        self._keeper = asyncio.create_task(self._keep(), name=f"consume {queue}")

    @property
    def detached_seconds(self) -> float | None:
        """For how long the broker has not known the consumer: 0 while it does, None if it never did."""
        if self._attached:
            return 0.0
        return None if self._detached_at is None else time.monotonic() - self._detached_at

    async def cancel(self) -> None:
        """Stop deliveries; those already made can still be settled."""
        await end(self._keeper)
        session = self._session
        if session is not None and session.consumer_tag is not None:
            with suppress(BrokerUnavailable):
                async with calling(CLOSE_SECONDS):
                    await session.underlay.basic_cancel(session.consumer_tag)

    async def close(self) -> None:
        """Stop, and give back what is unsettled.

        Cancelling comes first: a channel sends a quorum queue 32 commands ahead and forgets the later acks
        when it is closed, whereas the queue's answer to the cancellation follows them all.
        """
        await self.cancel()
        await self._leave()

    async def _keep(self) -> None:
        pauses, told = pauses_seconds(), ""
        while True:
            try:
                connection = await self._link.connected()
                session = await self._enter(connection)
                pauses, told = pauses_seconds(), ""
                await self._watch(session, connection)
            except Exception as error:  # noqa: BLE001 - a consumer that is wanted must never silently be gone
                if str(error) != told:
                    told = str(error)
                    log.warning("cannot consume, trying on", queue=self._queue, error=told)
            await self._leave()
            await asyncio.sleep(next(pauses))

    async def _enter(self, connection: AbstractConnection) -> Session:
        """Declare the queue and consume it on a new channel."""
        async with calling(CONNECT_SECONDS):
            await self._declare(connection)
            channel = connection.channel(publisher_confirms=False)
            await channel.initialize()
            session = Session(self._queue, channel, await channel.get_underlay_channel())
            self._session = session

            # aiormq runs this in a task which it cancels with the channel, so there is nothing to await.
            async def received(message: DeliveredMessage) -> None:
                self._deliver(session.receive(message))

            session.underlay.on_consumer_cancel_callbacks.add(session.end)
            await session.underlay.basic_qos(prefetch_count=self._prefetch)
            consumed = await session.underlay.basic_consume(self._queue, received)
            session.consumer_tag = consumed.consumer_tag
        self._attached = True
        log.info("consuming", queue=self._queue, prefetch=self._prefetch)
        return session

    async def _declare(self, connection: AbstractConnection) -> None:
        try:
            await self._declarer.declare(connection, self._queue)
        except QueueMismatch as error:
            log.error("consuming a queue that is not as declared", queue=self._queue, error=str(error))  # noqa: TRY400 - the operator's to mend

    async def _watch(self, session: Session, connection: AbstractConnection) -> None:
        """Return when the session is over: closed, cancelled by the broker, or silent beside a full queue."""
        closing = session.underlay.closing
        neglected = 0
        try:
            while neglected < LOOKS_BEFORE_ANEW:
                delivered = session.delivered
                await asyncio.wait(
                    {closing, session.cancelled},
                    timeout=self._watch_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if closing.done() or session.cancelled.done():
                    return
                silent = session.delivered == delivered and not session.held
                neglected = neglected + 1 if silent and await self._waiting(connection) else 0
            log.warning("messages are ready and none comes, consuming again", queue=self._queue)
        finally:
            closing.cancel()

    async def _waiting(self, connection: AbstractConnection) -> bool:
        async with calling(CONNECT_SECONDS):
            counted = await depth(connection, self._queue)
        return counted is None or counted.ready > 0

    async def _leave(self) -> None:
        """Close the channel: what is unsettled goes back, what comes late is settled in vain."""
        session, self._session = self._session, None
        if self._attached:
            self._attached, self._detached_at = False, time.monotonic()
        if session is not None:
            session.flush()
            session.forget()
            with suppress(BrokerUnavailable):
                async with calling(CLOSE_SECONDS):
                    await session.channel.close()
