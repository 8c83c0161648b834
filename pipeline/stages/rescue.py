"""The janitor's rescue: what dead workers and hung runs held is dispatched again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pipeline.clock import MonotonicClock
from pipeline.flow import Stage
from storage.errors import StorageError

if TYPE_CHECKING:
    from uuid import UUID

    from pipeline.clock import Clock
    from pipeline.ports import Upkeep, Workers
    from storage.model import Disconnected

log = structlog.get_logger()

MOST_ROWS = 500
"""How many runs one statement moves: it must never hold many locks for long."""

LOOKS_BEFORE_DEATH = 5
"""In how many rounds running a worker must be found disconnected: one that lives beats within two of them."""


class Rescue(Stage[None, None]):
    """Declares workers dead, and dispatches again what dead workers and hung runs held.

    Dead is who was silent for a lease, or, sooner, whose connection to the database has ended and who has
    not come back in `LOOKS_BEFORE_DEATH` rounds running. Neither is believed of a database that stood still,
    for that makes every worker look silent and every run hung, whose verdict only waits: after a round that
    failed, or that took or came longer than half a lease, looks are counted anew, and neither silence nor
    time says anything for one lease.
    """

    def __init__(
        self, upkeep: Upkeep, workers: Workers, lease_seconds: float = 30.0, clock: Clock | None = None
    ) -> None:
        self._upkeep = upkeep
        self._workers = workers
        self._lease_seconds = lease_seconds
        self._clock = clock or MonotonicClock()
        self._looks: dict[Disconnected, int] = {}
        self._last_round_at = self._clock.now()
        self._distrust()

    async def __call__(self, _tick: None) -> None:
        """Run one round; raises what the database raised."""
        started_at = self._clock.now()
        if not self._in_time(self._last_round_at):
            self._distrust()  # this process stood still, and perhaps all others beside it
        try:
            disconnected = await self._workers.disconnected()
            if self._in_time(started_at):
                await self._declare_dead(disconnected)
            await self._rescue()
        except StorageError:
            self._distrust()
            raise
        finally:
            self._last_round_at = self._clock.now()
        if not self._in_time(started_at):
            self._distrust()

    def _in_time(self, since: float) -> bool:
        return self._clock.now() - since <= self._lease_seconds / 2

    async def _declare_dead(self, disconnected: list[Disconnected]) -> None:
        self._looks = {one: self._looks.get(one, 0) + 1 for one in disconnected}
        gone = [one for one, looks in self._looks.items() if looks >= LOOKS_BEFORE_DEATH]
        if gone:
            _tell(await self._workers.declare_disconnected_dead(gone), "disconnected")
        if self._clock.now() >= self._trusted_from:
            _tell(await self._workers.declare_dead(self._lease_seconds), "silent")

    async def _rescue(self) -> None:
        trusted = self._clock.now() >= self._trusted_from
        while rescued := await self._upkeep.rescue(MOST_ROWS, self._lease_seconds, hung=trusted):
            for run in rescued:
                task_id, dispatch = run.reference
                log.warning("rescued", task_id=str(task_id), dispatch=dispatch, status=run.status.name)
            if len(rescued) < MOST_ROWS:
                return

    def _distrust(self) -> None:
        self._looks.clear()
        self._trusted_from = self._clock.now() + self._lease_seconds


def _tell(dead: list[UUID], why: str) -> None:
    for worker_id in dead:
        log.warning("worker declared dead", worker_id=str(worker_id), why=why)
