"""The janitor's stages: what was lost is dispatched again, what is over is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pipeline.broker.topology import work_route
from pipeline.clock import MonotonicClock
from pipeline.flow import Stage
from storage.errors import StorageError
from storage.model import Priority

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.broker import Broker
    from pipeline.clock import Clock
    from pipeline.ports import Upkeep, Workers

log = structlog.get_logger()

MOST_ROWS = 500
MOST_STEPS = 100
"""Steps of a round of pruning: 50,000 rows, of a second or two."""
"""How many rows one statement of a janitor moves: it must never hold many locks for long."""


class Rescue(Stage[None, None]):
    """Declares silent workers dead, and dispatches again what dead workers and hung runs held.

    After a statement that failed or took longer than half a lease it declares nobody dead for one lease:
    a database that stood still makes every worker look silent.
    """

    def __init__(
        self, upkeep: Upkeep, workers: Workers, lease_seconds: float = 30.0, clock: Clock | None = None
    ) -> None:
        self._upkeep = upkeep
        self._workers = workers
        self._lease_seconds = lease_seconds
        self._clock = clock or MonotonicClock()
        self._trusted_from = self._clock.now() + lease_seconds
        self._asked_at: float | None = None

    async def __call__(self, _tick: None) -> None:
        """Run one round; raises what the database raised."""
        started_at = self._clock.now()
        try:
            if started_at >= self._trusted_from:
                dead = await self._workers.declare_dead(self._lease_seconds)
                for worker_id in dead:
                    log.warning("worker declared dead", worker_id=str(worker_id))
            await self._rescue()
        except StorageError:
            self._distrust()
            raise
        if self._clock.now() - started_at > self._lease_seconds / 2:
            self._distrust()

    async def _rescue(self) -> None:
        while rescued := await self._upkeep.rescue(MOST_ROWS, self._lease_seconds):
            log.warning("rescued from dead workers", runs=rescued)
            if rescued < MOST_ROWS:
                return

    def _distrust(self) -> None:
        self._trusted_from = self._clock.now() + self._lease_seconds


class Resend(Stage[None, None]):
    """Sends again what the broker has lost; a false alarm only doubles a message.

    Two signs: a later message of the same queue was claimed a round ago, or a queue is found empty twice,
    with nothing unclaimed at any worker, while tasks are said to have been in it since the round before.
    """

    def __init__(self, upkeep: Upkeep, broker: Broker, round_seconds: float = 10.0) -> None:
        self._upkeep = upkeep
        self._broker = broker
        self._round_seconds = round_seconds
        self._claimed_through: dict[Priority, datetime] = {}
        self._empty: set[Priority] = set()

    async def __call__(self, _tick: None) -> None:
        """Run one round over all work queues."""
        newest = await self._upkeep.claimed_through()
        unclaimed = await self._upkeep.unclaimed()
        for priority in Priority:
            overtaken = self._claimed_through.get(priority)
            if overtaken is not None:
                await self._resend(priority, overtaken, "overtaken")
            if await self._is_empty(priority, unclaimed.get(priority, 0)):
                await self._resend(priority, None, "queue found empty")
        self._claimed_through = newest

    async def _is_empty(self, priority: Priority, unclaimed: int) -> bool:
        depth = await self._broker.depth(work_route(priority))
        empty = (depth is None or not depth.ready) and not unclaimed
        twice = empty and priority in self._empty
        (self._empty.add if empty else self._empty.discard)(priority)
        return twice

    async def _resend(self, priority: Priority, queued_before: datetime | None, sign: str) -> None:
        sent = await self._upkeep.resend(priority, queued_before, MOST_ROWS, self._round_seconds)
        if sent:
            log.warning("sent again", queue=work_route(priority), tasks=sent, sign=sign)


class Prune(Stage[None, None]):
    """Removes finished tasks past their retention, expired idempotency keys, workers long dead."""

    def __init__(
        self, upkeep: Upkeep, retention_seconds: float = 604_800, idempotency_ttl_seconds: float = 86_400
    ) -> None:
        self._upkeep = upkeep
        self._retention_seconds = retention_seconds
        self._idempotency_ttl_seconds = idempotency_ttl_seconds

    async def __call__(self, _tick: None) -> None:
        """Run one round of bounded steps; what it does not come to is the next round's, so that it drains."""
        total = 0
        for _ in range(MOST_STEPS):
            removed = await self._upkeep.prune(
                self._retention_seconds, self._idempotency_ttl_seconds, MOST_ROWS
            )
            total += removed
            if removed < MOST_ROWS:
                break
        if total:
            log.info("pruned", rows=total)
