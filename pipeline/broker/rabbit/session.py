"""What is delivered on one channel, and how it is settled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pamqp.frame
import structlog
from aiormq.abc import ChannelFrame
from pamqp.commands import Basic

from pipeline.broker.rabbit.link import alive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aio_pika.abc import AbstractChannel
    from aiormq.abc import AbstractChannel as Underlay
    from aiormq.abc import DeliveredMessage

log = structlog.get_logger()

FULL_SECONDS = 0.01
"""When to look again whether aiormq's queue of writes has room."""


class RabbitDelivery:
    """A message, and the session in which alone it can be settled."""

    __slots__ = ("_message", "_session", "_tag")

    def __init__(self, message: DeliveredMessage, tag: int, session: Session) -> None:
        self._message = message
        self._tag = tag
        self._session = session

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self._session.queue

    @property
    def body(self) -> bytes:
        """The bytes as published."""
        return self._message.body

    @property
    def headers(self) -> Mapping[str, object]:
        """The headers, for evidence only."""
        return self._message.header.properties.headers or {}

    async def ack(self) -> None:
        """Let the broker forget it; on a channel that is gone this does nothing."""
        self._session.ack(self._tag)

    async def nack(self) -> None:
        """Give it back to the head of its queue; on a channel that is gone it has gone back already.

        By `basic.reject`, which raises the delivery count in every version; from RabbitMQ 4.3 on `basic.nack`
        does not (RabbitMQ documentation, "basic.reject vs. basic.nack").
        """
        self._session.refuse(Basic.Reject(self._tag, requeue=True))

    async def reject(self) -> None:
        """Refuse it for good, to where its queue dead-letters; on a channel that is gone, it comes again."""
        self._session.refuse(Basic.Reject(self._tag, requeue=False))


class Session:
    """One channel on which a queue is consumed; `held` lists the unsettled deliveries, oldest first."""

    def __init__(self, queue: str, channel: AbstractChannel, underlay: Underlay) -> None:
        self.queue = queue
        self.channel = channel
        self.underlay = underlay
        self.cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.consumer_tag: str | None = None
        self.delivered = 0
        self.held: dict[int, None] = {}
        self._acked: set[int] = set()
        self._refused: list[Basic.Reject] = []
        self._flushing: asyncio.Handle | None = None

    def receive(self, message: DeliveredMessage) -> RabbitDelivery:
        """Take note of a message, in the order of delivery."""
        tag = message.delivery_tag or 0
        self.delivered += 1
        self.held[tag] = None
        return RabbitDelivery(message, tag, self)

    def ack(self, tag: int) -> None:
        """Accept what is held; a second settlement does nothing, the broker would close the channel."""
        if tag in self.held:
            self._acked.add(tag)
            self._flush_soon()

    def refuse(self, frame: Basic.Reject) -> None:
        """Give back, or refuse for good, what is held."""
        if frame.delivery_tag in self.held and frame.delivery_tag not in self._acked:
            del self.held[frame.delivery_tag]
            self._refused.append(frame)
            self._flush_soon()

    def flush(self) -> None:
        """Write what was settled, in one go.

        Nothing is awaited: no one empties aiormq's queue of writes on a connection that dies.
        """
        self._flushing = None
        writes = self.underlay.connection.write_queue
        if not alive(self.underlay):
            self.forget()
        elif writes.full():
            self._flushing = asyncio.get_running_loop().call_later(FULL_SECONDS, self.flush)
        elif frames := self._settlements():
            payload = b"".join(pamqp.frame.marshal(frame, self.underlay.number) for frame in frames)
            writes.put_nowait(ChannelFrame(payload=payload, should_close=False))

    def forget(self) -> None:
        """Hold nothing any more: the broker has taken all back, or is about to."""
        self.held.clear()
        self._acked.clear()
        self._refused.clear()

    def end(self, _: object) -> None:
        """Take note that the broker has cancelled the consumer, as it does when the queue is deleted."""
        if not self.cancelled.done():
            self.cancelled.set_result(None)
            log.warning("the broker cancelled the consumer, consuming again", queue=self.queue)

    def _flush_soon(self) -> None:
        """Write in the next turn of the loop, together with all that is settled in this one."""
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self.flush)

    def _settlements(self) -> list[Basic.Ack | Basic.Reject]:
        """List the frames: one ack for as many as possible, since each costs the broker a log entry.

        Refusals go first, lest an ack of all that came before covers them.
        """
        frames: list[Basic.Ack | Basic.Reject] = [*self._refused]
        through = 0
        for tag in self.held:
            if tag not in self._acked:
                break
            through = tag
        if through:
            frames.append(Basic.Ack(through, multiple=True))
        for tag in self._acked:
            del self.held[tag]
            if tag > through:
                frames.append(Basic.Ack(tag))
        self._refused.clear()
        self._acked.clear()
        return frames
