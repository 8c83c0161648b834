"""The broker as the stages see it; `rabbit` and `memory` pass one contract suite."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class BrokerError(Exception):
    """The broker did not do what was asked."""


class BrokerUnavailable(BrokerError):
    """There is no usable connection to the broker; nothing is known to have happened."""


class QueueMismatch(BrokerError):
    """A queue is not as ours, or may not be declared; changing that is an operator's step."""


class Message(NamedTuple):
    """What is published: the queue it is for and the bytes."""

    route: str
    body: bytes


class Publication(enum.Enum):
    """What the broker said of one published message."""

    CONFIRMED = "confirmed"
    """It holds the message durably."""
    RETURNED = "returned"
    """No queue of that name took it."""
    REFUSED = "refused"
    """It said no (nack): a full queue, or no quorum."""
    UNKNOWN = "unknown"
    """The confirm never came: it may hold the message or not."""


class Depth(NamedTuple):
    """Messages ready in a queue (not those delivered and unacknowledged), and its consumers."""

    ready: int
    consumers: int


class Delivery(Protocol):
    """A message in our hands; the broker keeps it until it is settled."""

    @property
    def queue(self) -> str:
        """The queue it came from."""

    @property
    def body(self) -> bytes:
        """The bytes as published."""

    @property
    def headers(self) -> Mapping[str, object]:
        """The headers, for evidence only: no decision hangs on them."""

    async def ack(self) -> None:
        """Let the broker forget it; on a channel that is gone this does nothing, it comes again."""

    async def nack(self) -> None:
        """Give it back to the head of its queue; only on drain, since it raises the delivery count."""

    async def reject(self) -> None:
        """Refuse it for good: the broker moves it to the queue its queue dead-letters to.

        Needed for messages nobody can decode; on a channel that is gone this does nothing.
        """


class Subscription(Protocol):
    """A consumer that lives until it is cancelled, across reconnections."""

    @property
    def detached_seconds(self) -> float | None:
        """For how long the broker has not known the consumer: 0 while it does, None if it never did."""

    async def cancel(self) -> None:
        """Stop deliveries; those already made can still be settled."""


class Broker(Protocol):
    """One process's access to the broker; it reconnects by itself for as long as it is open."""

    async def __aenter__(self) -> Self:
        """Start connecting; does not wait for success."""

    async def __aexit__(self, *exc: object) -> None:
        """Close; unsettled deliveries go back to their queues."""

    async def ready(self) -> None:
        """Wait until there is a connection to publish on, and the broker reads from it."""

    async def publish(self, messages: Sequence[Message]) -> list[Publication]:
        """Send all at once, persistent and mandatory; one answer each, in order.

        Raises BrokerUnavailable where there is no connection to send on.
        """

    async def declare(self, route: str) -> None:
        """Make sure the queue of a route exists, with the arguments of `topology`.

        Raises UnknownRoute, QueueMismatch or BrokerUnavailable.
        """

    async def consume(self, queue: str, prefetch: int, deliver: Callable[[Delivery], None]) -> Subscription:
        """Call `deliver` for each message, at most `prefetch` of them unsettled.

        Declares the queue where it is missing, and again after each reconnection.
        Returns at once; the first connection may come later.
        """

    async def depth(self, queue: str) -> Depth | None:
        """Count the ready messages and consumers; None where the queue does not exist.

        Raises BrokerUnavailable.
        """
