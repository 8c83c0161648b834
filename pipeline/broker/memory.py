"""The broker inside the process: volatile, and otherwise like RabbitMQ as far as the stages can see."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

import structlog

from pipeline.broker import BrokerUnavailable, Depth, Publication
from pipeline.broker.topology import LARGEST_BODY_BYTES, arguments, parse, prerequisites
from pipeline.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pipeline.broker import Delivery, Message
    from pipeline.clock import Clock

log = structlog.get_logger()

CAPACITY = 100_000
MISSING_TARGET_POLL_SECONDS = 1.0


class _Held:
    """A message in the broker's hands; `returns` is its delivery count in the present queue."""

    __slots__ = ("body", "expires_at", "headers", "returns")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.headers: dict[str, object] = {}
        self.returns = 0
        self.expires_at = 0.0


class MemoryDelivery:
    """A message in a consumer's hands."""

    __slots__ = ("consumer", "message")

    def __init__(self, message: _Held, consumer: MemorySubscription) -> None:
        self.message = message
        self.consumer = consumer

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self.consumer.queue

    @property
    def body(self) -> bytes:
        """The bytes as published."""
        return self.message.body

    @property
    def headers(self) -> Mapping[str, object]:
        """The headers, for evidence only."""
        return self.message.headers

    async def ack(self) -> None:
        """Let the broker forget it; does nothing once settled or taken back."""
        self.consumer.release(self)

    async def nack(self) -> None:
        """Give it back to the head of its queue; does nothing once settled or taken back."""
        if self.consumer.release(self):
            self.consumer.broker.give_back(self.queue, [self.message])

    async def reject(self) -> None:
        """Refuse it for good, to where its queue dead-letters; does nothing once settled or taken back."""
        if self.consumer.release(self):
            self.consumer.broker.dead_letter(self.queue, self.message, "rejected")


class MemorySubscription:
    """A consumer, and what it has not settled in the order of delivery."""

    def __init__(
        self, broker: MemoryBroker, queue: str, prefetch: int, deliver: Callable[[Delivery], None]
    ) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.deliver = deliver
        self.cancelled = False
        self.unsettled: dict[MemoryDelivery, None] = {}
        self.broker = broker

    @property
    def detached_seconds(self) -> float:
        """For how long there has been an outage: 0 without one."""
        return self.broker.outage_seconds

    def release(self, delivery: MemoryDelivery) -> bool:
        """Take a delivery out of this consumer's hands, and tell whether it still was in them."""
        if delivery not in self.unsettled:
            return False
        del self.unsettled[delivery]
        self.broker.serve(self)
        return True

    async def cancel(self) -> None:
        """Stop deliveries; those already made can still be settled."""
        self.cancelled = True
        self.broker.serve(self)


class _Queue:
    """Messages, returned ones first, and the consumers in the order in which they are served next."""

    def __init__(self, name: str) -> None:
        frozen = arguments(name)
        self.name = name
        self.hold_seconds = parse(name).hold_seconds
        self.delivery_limit = int(frozen.get("x-delivery-limit", 0))
        self.dead_letters_to = str(frozen.get("x-dead-letter-routing-key", ""))
        self.returned: deque[_Held] = deque()
        self.ready: deque[_Held] = deque()
        self.consumers: set[MemorySubscription] = set()
        self.with_room: dict[MemorySubscription, None] = {}
        self.pumping = False
        self.expiry: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """How many messages are ready."""
        return len(self.returned) + len(self.ready)

    def offer(self, consumer: MemorySubscription) -> None:
        """Serve a consumer once it has room, after the others."""
        if consumer in self.consumers and len(consumer.unsettled) < consumer.prefetch:
            self.with_room.setdefault(consumer)
            self.pump_soon()

    def leave(self, consumer: MemorySubscription) -> None:
        """Serve a consumer no more."""
        self.consumers.discard(consumer)
        self.with_room.pop(consumer, None)

    def pump_soon(self) -> None:
        """Deliver in the next turn of the event loop: nobody is called from within a publish."""
        if not self.pumping and self.with_room and self.depth:
            self.pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self.pumping = False
        while self.with_room and self.depth:
            consumer = next(iter(self.with_room))
            del self.with_room[consumer]
            delivery = MemoryDelivery((self.returned or self.ready).popleft(), consumer)
            consumer.unsettled[delivery] = None
            if len(consumer.unsettled) < consumer.prefetch:
                self.with_room[consumer] = None
            consumer.deliver(delivery)


class MemoryBroker:
    """All queues of one process; what it holds survives neither the process nor a restart.

    `capacity` bounds the messages ready in each queue, beyond which publishing is refused. What moves
    between queues inside is not refused: it was counted when it came.
    """

    def __init__(self, capacity: int = CAPACITY, clock: Clock | None = None) -> None:
        self._capacity = capacity
        self._clock = clock or MonotonicClock()
        self._queues: dict[str, _Queue] = {}
        self._subscriptions: dict[MemorySubscription, None] = {}
        self._up = asyncio.Event()
        self._down_since = self._clock.now()

    @property
    def outage_seconds(self) -> float:
        """How long the present outage has lasted: 0 without one."""
        return 0.0 if self._up.is_set() else self._clock.now() - self._down_since

    async def __aenter__(self) -> Self:
        """Open; what an earlier opening left in the queues is there."""
        self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close; unsettled deliveries go back to their queues."""
        self.stop()
        self._subscriptions.clear()
        for queue in self._queues.values():
            if queue.expiry is not None:
                queue.expiry.cancel()
                queue.expiry = None

    async def ready(self) -> None:
        """Wait while there is an outage."""
        await self._up.wait()

    async def publish(self, messages: Sequence[Message]) -> list[Publication]:
        """Take what fits; one answer each, in order. Raises BrokerUnavailable."""
        self._require()
        return [self._take(message) for message in messages]

    async def declare(self, route: str) -> None:
        """Make sure the queue of a route exists. Raises UnknownRoute or BrokerUnavailable."""
        self._require()
        self._declare(route)

    async def consume(
        self, queue: str, prefetch: int, deliver: Callable[[Delivery], None]
    ) -> MemorySubscription:
        """Consume a queue until cancelled, across outages and deletions. Raises UnknownRoute."""
        parse(queue)
        subscription = MemorySubscription(self, queue, prefetch, deliver)
        self._subscriptions[subscription] = None
        self._attach(subscription)
        return subscription

    async def depth(self, queue: str) -> Depth | None:
        """Count ready messages and consumers; None where the queue is missing. Raises BrokerUnavailable."""
        self._require()
        found = self._queues.get(queue)
        return None if found is None else Depth(found.depth, len(found.consumers))

    def stop(self) -> None:
        """Begin an outage: calls raise BrokerUnavailable, unsettled deliveries go back."""
        self._up.clear()
        self._down_since = self._clock.now()
        for subscription in self._subscriptions:
            messages = [delivery.message for delivery in subscription.unsettled]
            subscription.unsettled.clear()
            if queue := self._queues.get(subscription.queue):
                queue.leave(subscription)
                self.give_back(queue.name, messages)

    def start(self) -> None:
        """End an outage: consumers come back by themselves."""
        self._up.set()
        for subscription in self._subscriptions:
            self._attach(subscription)
        for queue in self._queues.values():
            self._watch_expiry(queue)

    def purge(self, queue: str) -> int:
        """Forget a queue's ready messages; returns how many."""
        found = self._queues[queue]
        count = found.depth
        found.ready.clear()
        found.returned.clear()
        return count

    def delete(self, queue: str) -> None:
        """Forget a queue and all its messages; its consumers declare it again and come back."""
        deleted = self._queues.pop(queue)
        if deleted.expiry is not None:
            deleted.expiry.cancel()
        for subscription in self._subscriptions:
            if subscription.queue == queue:
                subscription.unsettled.clear()
                asyncio.get_running_loop().call_soon(self._attach, subscription)
        deleted.with_room.clear()

    def serve(self, subscription: MemorySubscription) -> None:
        """Go on delivering to a consumer that has settled something; see one off that was cancelled."""
        queue = self._queues.get(subscription.queue)
        if queue is not None and not subscription.cancelled:
            queue.offer(subscription)
        elif queue is not None:
            queue.leave(subscription)
        if subscription.cancelled and not subscription.unsettled:
            self._subscriptions.pop(subscription, None)

    def give_back(self, queue: str, messages: Iterable[_Held]) -> None:
        """Put messages that were delivered before all others; one that comes too often is a dead letter."""
        found = self._queues[queue]
        for message in messages:
            message.returns += 1
            message.headers["x-delivery-count"] = message.returns
            if found.delivery_limit and message.returns > found.delivery_limit:
                self.dead_letter(queue, message, "delivery_limit")
            else:
                found.returned.append(message)
        found.pump_soon()

    def dead_letter(self, queue: str, message: _Held, reason: str) -> None:
        """Move a message on; without a target it is gone, as with RabbitMQ's at-most-once default."""
        target = self._queues.get(self._queues[queue].dead_letters_to)
        if target is None:
            log.warning("message dropped: there is no queue for dead letters", queue=queue, reason=reason)
            return
        message.returns = 0
        message.headers.pop("x-delivery-count", None)
        message.headers = {"x-first-death-queue": queue, "x-first-death-reason": reason} | message.headers
        self._put(message, target)

    def _require(self) -> None:
        if not self._up.is_set():
            raise BrokerUnavailable("the memory broker is stopped")

    def _take(self, message: Message) -> Publication:
        queue = self._queues.get(message.route)
        if queue is None:
            return Publication.RETURNED
        if queue.depth >= self._capacity or len(message.body) > LARGEST_BODY_BYTES:
            return Publication.REFUSED
        self._put(_Held(message.body), queue)
        return Publication.CONFIRMED

    def _put(self, message: _Held, queue: _Queue) -> None:
        if queue.hold_seconds:
            message.expires_at = self._clock.now() + queue.hold_seconds
        queue.ready.append(message)
        queue.pump_soon()
        self._watch_expiry(queue)

    def _declare(self, route: str) -> None:
        for name in (*prerequisites(route), route):
            if name not in self._queues:
                self._queues[name] = _Queue(name)

    def _attach(self, subscription: MemorySubscription) -> None:
        if self._up.is_set() and not subscription.cancelled:
            self._declare(subscription.queue)
            queue = self._queues[subscription.queue]
            queue.consumers.add(subscription)
            queue.offer(subscription)

    def _watch_expiry(self, queue: _Queue) -> None:
        if queue.hold_seconds and queue.depth and queue.expiry is None:
            queue.expiry = asyncio.create_task(self._expire(queue), name=f"expire {queue.name}")

    async def _expire(self, queue: _Queue) -> None:
        """Move messages when their time is up; all of a queue wait equally long, so the head is next."""
        while queue.depth:
            wait_seconds = (queue.returned or queue.ready)[0].expires_at - self._clock.now()
            if wait_seconds > 0:
                await self._clock.sleep(wait_seconds)
            elif queue.dead_letters_to in self._queues:
                self.dead_letter(queue.name, (queue.returned or queue.ready).popleft(), "expired")
            else:
                await self._clock.sleep(MISSING_TARGET_POLL_SECONDS)
        queue.expiry = None
