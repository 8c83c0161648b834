"""Hands a batch of outbox rows to the broker and tells what it said of each."""

from __future__ import annotations

import enum
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from pipeline.broker import BrokerUnavailable, Message, Publication, QueueMismatch
from pipeline.broker.topology import UnknownRoute
from pipeline.clock import MonotonicClock
from pipeline.flow import Stage
from pipeline.references import encode
from storage.backoff import backoff_seconds
from storage.model import Capacity, OutboxRow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from pipeline.broker import Broker
    from pipeline.clock import Clock
    from storage.model import Priority

log = structlog.get_logger()

MOST_REFERENCES = 64
"""What one message carries at most: beyond it packing gains little, and one worker would get too much."""

CAPACITY_SECONDS = 1.0

SUPPOSED = Capacity(workers=16, free=16 * MOST_REFERENCES)
"""Who will come where nobody works now. A message for each reference took the broker 1 KB of memory, and the
workers that returned three times as long; too large a message is handed back in part.
"""


FIRST_WITHHELD_SECONDS, LONGEST_WITHHELD_SECONDS = 2.0, 30.0
"""How long a silent route is left alone before it is tried with one message."""


class Withheld(NamedTuple):
    """Rows of a silent route that were not sent, and how long they wait."""

    rows: list[OutboxRow]
    seconds: float


class Published(msgspec.Struct, frozen=True):
    """What the broker said of a batch.

    `confirmed` it holds; `unsent` it refused for now or said nothing of; `undeliverable` no queue takes;
    `withheld` it was not asked to take.
    """

    confirmed: list[OutboxRow] = []
    unsent: list[OutboxRow] = []
    undeliverable: list[OutboxRow] = []
    withheld: list[Withheld] = []


async def _nobody() -> dict[Priority, Capacity]:
    return {}


class Publish(Stage[list[OutboxRow], Published]):
    """Publishes a batch at once, many references to a message where many were found.

    A returned message makes it declare the route and send once more. A route of which the broker says
    nothing, while it answers for others, holds up no batch but the first. Raises BrokerUnavailable.
    """

    def __init__(
        self,
        broker: Broker,
        capacity: Callable[[], Awaitable[dict[Priority, Capacity]]] = _nobody,
        clock: Clock | None = None,
    ) -> None:
        self._broker = broker
        self._ask_capacity = capacity
        self._clock = clock or MonotonicClock()
        self._capacity: dict[Priority, Capacity] = {}
        self._asked_at = -CAPACITY_SECONDS
        self._silent: dict[str, _Silent] = {}

    async def __call__(self, rows: list[OutboxRow]) -> Published:
        """Send every row's reference; one answer for each row."""
        published = Published()
        returned = await self._send(await self._packs(rows, published), published)
        if returned:
            await self._send_again(returned, published)
        return published

    async def _send_again(self, returned: list[list[OutboxRow]], published: Published) -> None:
        """Declare the routes of what was returned, each for itself, and send that once more.

        Nothing is raised: it would give back what the broker has confirmed of other routes, again and again.
        """
        declared = {route: await self._declare(route) for route in {pack[0].route for pack in returned}}
        again, undeliverable, unsent = (
            [pack for pack in returned if declared[pack[0].route] is answer]
            for answer in (_Declared.YES, _Declared.IMPOSSIBLE, _Declared.UNANSWERED)
        )
        try:
            undeliverable += await self._send(again, published)
        except BrokerUnavailable as error:
            log.warning("not sent after its declaration", error=str(error))
            unsent += again
        published.undeliverable.extend(row for pack in undeliverable for row in pack)
        published.unsent.extend(row for pack in unsent for row in pack)

    async def _packs(self, rows: list[OutboxRow], published: Published) -> list[list[OutboxRow]]:
        by_route: dict[str, list[OutboxRow]] = defaultdict(list)
        for row in rows:
            by_route[row.route].append(row)
        packs = []
        for route, found in by_route.items():
            size = await self._pack_size(found)
            of_route = [found[start : start + size] for start in range(0, len(found), size)]
            silent = self._silent.get(route)
            packs += of_route if silent is None else self._try(silent, of_route, published)
        return packs

    def _try(
        self, silent: _Silent, packs: list[list[OutboxRow]], published: Published
    ) -> list[list[OutboxRow]]:
        """Choose what is sent to a silent route: one message, or nothing yet."""
        tried = packs[:1] if silent.may_be_tried() else []
        if left := [row for pack in packs[len(tried) :] for row in pack]:
            published.withheld.append(Withheld(left, silent.seconds))
        return tried

    async def _pack_size(self, rows: list[OutboxRow]) -> int:
        """Divide what was found among the live workers, but give none more than it reports slots for."""
        if len(rows) == 1:
            return 1
        if self._clock.now() - self._asked_at >= CAPACITY_SECONDS:
            self._capacity = await self._ask_capacity()
            self._asked_at = self._clock.now()
        capacity = self._capacity.get(rows[0].priority, SUPPOSED)
        if not capacity.workers:
            capacity = SUPPOSED
        share = -(-len(rows) // capacity.workers)
        return max(1, min(share, capacity.free // capacity.workers, MOST_REFERENCES))

    async def _send(self, packs: list[list[OutboxRow]], published: Published) -> list[list[OutboxRow]]:
        if not packs:
            return []
        messages = [Message(pack[0].route, encode(row.reference for row in pack)) for pack in packs]
        answers = await self._broker.publish(messages)
        self._listen(messages, answers)
        returned = []
        for pack, publication in zip(packs, answers, strict=True):
            match publication:
                case Publication.CONFIRMED:
                    published.confirmed.extend(pack)
                case Publication.RETURNED:
                    returned.append(pack)
                case Publication.REFUSED | Publication.UNKNOWN:
                    published.unsent.extend(pack)
        return returned

    def _listen(self, messages: Sequence[Message], answers: Sequence[Publication]) -> None:
        """Take note of routes that are silent, and of those that no longer are.

        A quorum queue without a leader answers nothing. Where nothing at all is answered, the broker is away.
        """
        asked = {message.route for message in messages}
        heard = {
            message.route
            for message, answer in zip(messages, answers, strict=True)
            if answer is not Publication.UNKNOWN
        }
        for route in heard & self._silent.keys():
            del self._silent[route]
            log.info("the broker answers for the queue again", route=route)
        for route in asked - heard if heard else ():
            if route not in self._silent:
                self._silent[route] = _Silent(self._clock)
                log.warning("the broker is silent on one queue; it is tried now and then", route=route)

    async def _declare(self, route: str) -> _Declared:
        try:
            await self._broker.declare(route)
        except UnknownRoute as error:
            log.warning("route cannot be declared", route=route, error=str(error))
            return _Declared.IMPOSSIBLE
        except QueueMismatch as error:
            # All that could be declared is: whether the route takes messages, the second sending shows.
            log.warning("queue is not as declared", route=route, error=str(error))
        except BrokerUnavailable as error:
            log.warning("declaration not answered", route=route, error=str(error))
            return _Declared.UNANSWERED
        return _Declared.YES


class _Declared(enum.Enum):
    YES = enum.auto()
    IMPOSSIBLE = enum.auto()
    UNANSWERED = enum.auto()


class _Silent:
    """A route that is silent: when it may be tried, and `seconds` how long it is left alone from then on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._delays_seconds: Iterator[float] = backoff_seconds(
            FIRST_WITHHELD_SECONDS, LONGEST_WITHHELD_SECONDS
        )
        self._until = 0.0
        self._wait()

    @property
    def seconds(self) -> float:
        return max(0.0, self._until - self._clock.now())

    def may_be_tried(self) -> bool:
        """Tell whether its time has come; it is tried once, whoever asks next is told no."""
        if self.seconds:
            return False
        self._wait()
        return True

    def _wait(self) -> None:
        self._until = self._clock.now() + next(self._delays_seconds)
