"""The worker's source: references from its queues, as many as it has free slots, the urgent ones first."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import structlog

from pipeline.broker.topology import parse
from pipeline.clock import MonotonicClock
from pipeline.flow import Parcel, unless
from pipeline.references import Undecodable, decode
from storage.model import Priority, Reference

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from pipeline.broker import Broker, Delivery, Subscription
    from pipeline.clock import Clock
    from pipeline.ports import Runs
    from pipeline.slots import Slots

log = structlog.get_logger()

SHARES = {Priority.HIGH: 6, Priority.MEDIUM: 3, Priority.LOW: 1}
"""How free slots are divided among the queues that have work; a lone queue gets all."""

MOST_CLAIMED = 128
"""So many are claimed by one statement, and several claims are under way at once. With 500 slots and no bound
handlers that take equally long came to end together, and all slots stood empty during the claim of 500.
"""

HAND_BACK_AFTER_SECONDS = 5.0
HAND_BACK_DELAY_SECONDS = 5.0
GIVE_BACK_SECONDS = 1.0


class _Message:
    """A delivery and how many of its references are still in our hands."""

    def __init__(self, delivery: Delivery, references: int) -> None:
        self.delivery = delivery
        self.open = references
        self.given_back = False

    async def close(self, references: int = 1) -> None:
        """Ack once the last reference has passed on: claimed, refused, or handed back."""
        self.open -= references
        if not self.open and not self.given_back:
            await self.delivery.ack()

    async def give_back(self) -> None:
        """Return the whole message; what was already claimed of it will be refused as a duplicate."""
        if not self.given_back:
            self.given_back = True
            await self.delivery.nack()


class _Waiting(NamedTuple):
    reference: Reference
    message: _Message
    since: float


class Wave(NamedTuple):
    """References to claim together, a slot reserved for each; `parcel` settles their messages."""

    references: list[Reference]
    parcel: Parcel[list[Reference]]


class Consume:
    """Pulls a wave of references whenever there are some and slots are free.

    What finds no slot in time goes back through the database, so that another worker may have it; messages
    nobody can read go to the DLQ. On drain what was not pulled returns to its queue.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        slots: Slots,
        runs: Runs,
        *,
        prefetch: int = 4,
        clock: Clock | None = None,
    ) -> None:
        self._broker = broker
        self._slots = slots
        self._runs = runs
        self._prefetch = prefetch
        self._clock = clock or MonotonicClock()
        self._waiting: dict[str, deque[_Waiting]] = {queue: deque() for queue in queues}
        self._shares = {queue: SHARES[parse(queue).priority or Priority.LOW] for queue in queues}
        self._credit = dict.fromkeys(queues, 0)
        self._claiming: dict[Reference, list[_Message]] = {}
        self._subscriptions: list[Subscription] = []
        self._settling: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    @property
    def unclaimed(self) -> int:
        """How many references wait here for a slot."""
        return sum(len(waiting) for waiting in self._waiting.values())

    async def __aenter__(self) -> Self:
        """Listen to the queues."""
        for queue in self._waiting:
            self._subscriptions.append(await self._broker.consume(queue, self._prefetch, self._deliver))
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing is left: quiesce has given back what was not pulled, the flow has settled the rest."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=1.0)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            references = decode(delivery.body)
        except Undecodable as error:
            log.warning("undecodable message moved to the DLQ", queue=delivery.queue, error=str(error))
            self._settle_soon(delivery.reject())
            return
        if not references:
            self._settle_soon(delivery.ack())
        message = _Message(delivery, len(references))
        now = self._clock.now()
        self._waiting[delivery.queue].extend(_Waiting(reference, message, now) for reference in references)
        self._slots.released.set()

    def _settle_soon(self, settling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(settling)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def pull(self) -> Parcel[Wave] | None:
        """Wait for references and free slots; None once the worker is stopping."""
        while not self._stopping.is_set():
            self._slots.released.clear()
            wave = await self._take()
            if wave is not None:
                return Parcel(wave, wave.parcel.settle)
            await self._hand_back()
            await unless(self._stopping, self._something_happens())
        return None

    async def _something_happens(self) -> None:
        """Return when a message came or a slot was released, at the latest when a hand-back is due."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_BACK_AFTER_SECONDS / 5 if self.unclaimed else None):
                await self._slots.released.wait()

    async def _take(self) -> Wave | None:
        """Reserve a slot for each reference taken; duplicates of what is held are settled on the way."""
        taken: list[Reference] = []
        if not self._slots.worth_a_claim:
            return None
        while len(taken) < MOST_CLAIMED and self._slots.free and (queue := self._next_queue()) is not None:
            reference, message, _ = self._waiting[queue].popleft()
            if reference not in self._slots:
                # Where a claim has refused an earlier message, and freed its slot, this is a later hand-over.
                self._slots.reserve(reference)
                self._claiming[reference] = [message]
                taken.append(reference)
            elif reference in self._claiming:
                # The first message may be of a connection that is gone: then the broker has only this one.
                self._claiming[reference].append(message)
            else:
                await message.close()
        return self._wave(taken) if taken else None

    def _next_queue(self) -> str | None:
        """Choose by smooth weighted round robin among the queues that have work."""
        ready = [queue for queue, waiting in self._waiting.items() if waiting]
        if len(ready) <= 1:
            return ready[0] if ready else None
        for queue in ready:
            self._credit[queue] += self._shares[queue]
        chosen = max(ready, key=lambda queue: self._credit[queue])
        self._credit[chosen] -= sum(self._shares[queue] for queue in ready)
        return chosen

    def _wave(self, taken: list[Reference]) -> Wave:
        held = [(reference, self._claiming[reference]) for reference in taken]

        async def settle(failure: BaseException | None) -> None:
            if failure is not None:
                # Given back at once it would come straight back, until the delivery limit ends it.
                await unless(self._stopping, self._clock.sleep(GIVE_BACK_SECONDS))
                for reference in taken:
                    self._slots.release(reference)
            for reference, messages in held:
                if self._claiming.get(reference) is messages:
                    del self._claiming[reference]
            for message, references in Counter(chain.from_iterable(messages for _, messages in held)).items():
                await (message.close(references) if failure is None else message.give_back())

        return Wave(taken, Parcel(taken, settle))

    async def _hand_back(self) -> None:
        """Give what has waited too long for a slot back through the database, then let its message go."""
        latest = self._clock.now() - HAND_BACK_AFTER_SECONDS
        for queue, waiting in self._waiting.items():
            late = list(takewhile(lambda held: held.since <= latest, waiting))
            if not late:
                continue
            await self._runs.hand_back([held.reference for held in late], HAND_BACK_DELAY_SECONDS)
            for held in late:
                # A drain may have given it back while the database took its time.
                if waiting and waiting[0] is held:
                    await waiting.popleft().message.close()
            log.info("handed back, no slot was free", queue=queue, references=len(late))

    async def quiesce(self) -> None:
        """Take no more messages and give back those of which something was not pulled."""
        self._stopping.set()
        for subscription in self._subscriptions:
            await subscription.cancel()
        for waiting in self._waiting.values():
            while waiting:
                await waiting.popleft().message.give_back()
