"""The queues: three for work, one per priority and retry delay, one for dead letters.

A route is a queue's name; its grammar says all there is to know of the queue, so that any relay can
declare a route it meets, also one of a delay that is no longer in the settings:

    tasks.high | tasks.medium | tasks.low          work
    tasks.<priority>.retry.<n>s                    waits n seconds, then moves to its work queue
    tasks.dlq                                      dead letters
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from pipeline.broker import BrokerError
from storage.model import Priority

DLQ = "tasks.dlq"
WORK_QUEUES = {priority: f"tasks.{priority.name.lower()}" for priority in Priority}
DELIVERY_LIMIT = 100
LONGEST_HOLD_SECONDS = 86_400
LARGEST_BODY_BYTES = 1 << 20
"""What we hand to a broker at most: some 20,000 references, and far below any broker's max_message_size."""

_ROUTE = re.compile(
    r"tasks\.(?:(?P<dlq>dlq)|(?P<priority>high|medium|low)(?:\.retry\.(?P<hold>[1-9]\d{0,4})s)?)\Z"
)


class UnknownRoute(BrokerError):
    """A name outside the grammar of routes: no relay may declare it."""


class Route(NamedTuple):
    """A parsed route: `priority` is None for the DLQ, `hold_seconds` 0 for anything but a retry queue."""

    name: str
    priority: Priority | None
    hold_seconds: int


def work_route(priority: Priority) -> str:
    """Name the work queue of a priority."""
    return WORK_QUEUES[priority]


def retry_route(priority: Priority, delay_seconds: int) -> str:
    """Name the queue in which a retry of this priority waits for `delay_seconds`."""
    return f"{WORK_QUEUES[priority]}.retry.{delay_seconds}s"


@lru_cache(maxsize=1000)
def parse(name: str) -> Route:
    """Take a route apart; raises UnknownRoute for a name outside the grammar."""
    match = _ROUTE.match(name)
    hold_seconds = int(match["hold"] or 0) if match else 0
    if match is None or hold_seconds > LONGEST_HOLD_SECONDS:
        raise UnknownRoute(
            f"{name!r} is no route: tasks.<high|medium|low>, the same with .retry.<n>s, or {DLQ}"
        )
    priority = Priority[match["priority"].upper()] if match["priority"] else None
    return Route(name, priority, hold_seconds)


def arguments(name: str) -> dict[str, str | int]:
    """Give the frozen arguments of a route's queue; raises UnknownRoute.

    Every queue is a quorum queue. A work queue dead-letters to the DLQ only what was returned to it
    DELIVERY_LIMIT times. The DLQ drops it then; without a limit of ours it would after 20, from RabbitMQ 4
    on (RabbitMQ documentation, quorum queues, "poison message handling"). A retry queue needs
    `reject-publish` for at-least-once dead-lettering (same place, "activating at-least-once
    dead-lettering"); the default exchange with an explicit routing key leaves no binding that could be lost.
    """
    route = parse(name)
    if route.priority is None:
        return {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    if not route.hold_seconds:
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": DLQ,
        }
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": route.hold_seconds * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": work_route(route.priority),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def prerequisites(name: str) -> tuple[str, ...]:
    """List the routes a route dead-letters to, which must exist before it."""
    route = parse(name)
    if route.priority is None:
        return ()
    return (DLQ, work_route(route.priority)) if route.hold_seconds else (DLQ,)
