"""A worker's heartbeat, and the comparison of what it holds with what the database says it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from pipeline.clock import MonotonicClock
from pipeline.flow import Stage
from pipeline.slots import Stop
from storage.model import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from pipeline.clock import Clock
    from pipeline.duty import Duty
    from pipeline.ports import Runs, Workers
    from pipeline.slots import Slots
    from storage.model import Reference

log = structlog.get_logger()


class _Differences(NamedTuple):
    """What only the database holds, and what runs here without its knowledge."""

    forgotten: frozenset[Reference] = frozenset()
    foreign: frozenset[Reference] = frozenset()


class Beat(Stage[None, None]):
    """Reports for duty and acts on the answer: cancels what was asked to stop, and mends differences.

    A difference must show in two beats in a row, both answered: within one, a claim or a verdict may just
    be on its way, and after an outage it may be on its way again.
    """

    def __init__(
        self,
        workers: Workers,
        runs: Runs,
        slots: Slots,
        duty: Duty,
        queues: Sequence[str],
        *,
        unclaimed: Callable[[], int] = lambda: 0,
        clock: Clock | None = None,
    ) -> None:
        self._workers = workers
        self._runs = runs
        self._slots = slots
        self._duty = duty
        self._queues = tuple(queues)
        self._unclaimed = unclaimed
        self._clock = clock or MonotonicClock()
        self._differences = _Differences()
        self._signed_on: UUID | None = None

    async def __call__(self, _tick: None) -> None:
        """Beat once; raises Unavailable or OutcomeUnknown, and the next tick tries again."""
        earlier, self._differences = self._differences, _Differences()
        sent_at = self._clock.now()
        if not await self._workers.beat(self._heartbeat()):
            log.warning("declared dead, beginning anew", worker_id=str(self._duty.worker_id))
            self._slots.stop_all(Stop.LOST)
            self._duty.declared_dead()
            return
        self._duty.heard(sent_at)
        if self._signed_on != self._duty.worker_id:
            # A janitor that declares it dead names no more than this id.
            self._signed_on = self._duty.worker_id
            log.info(
                "signed on", worker_id=str(self._signed_on), queues=self._queues, slots=self._slots.count
            )
        self._differences = await self._compare(earlier)

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            worker_id=self._duty.worker_id,
            slots=self._slots.count,
            running=self._slots.running,
            free=self._slots.most_free(),
            unclaimed=self._unclaimed(),
            queues=self._queues,
            claimed_through=self._slots.newest(),
        )

    async def _compare(self, earlier: _Differences) -> _Differences:
        held, started = self._slots.held, self._slots.started
        holdings = await self._workers.held_by(self._duty.worker_id)
        for holding in holdings:
            if holding.cancel_requested:
                self._slots.stop(holding.reference, Stop.CANCELLED)
        in_database = frozenset(holding.reference for holding in holdings)
        forgotten = in_database - held - self._slots.held
        # Of what had started before the question, the claim was in; of what was reserved, nobody can say.
        foreign = (started & self._slots.held) - in_database
        await self._release(forgotten & earlier.forgotten)
        for reference in foreign & earlier.foreign:
            self._slots.stop(reference, Stop.LOST)
        return _Differences(forgotten, foreign)

    async def _release(self, lost: frozenset[Reference]) -> None:
        if lost:
            log.warning("held in the database only, dispatched again", runs=len(lost))
            await self._runs.release(sorted(lost), self._duty.worker_id)
