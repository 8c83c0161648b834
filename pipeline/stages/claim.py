"""Claims references: from here on the database knows who runs what."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from pipeline.clock import MonotonicClock
from pipeline.flow import Stage
from pipeline.stages.consume import Wave
from storage.backoff import until_known
from storage.errors import LockTimeout, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from pipeline.clock import Clock
    from pipeline.duty import Duty
    from pipeline.ports import Runs
    from pipeline.slots import Slots
    from storage.model import Reference, Run

log = structlog.get_logger()


class Claimed(NamedTuple):
    """What a wave's claim brought, and the wave, whose messages may now go."""

    wave: Wave
    runs: list[Run]


class Claim(Stage[Wave, Claimed]):
    """Claims a wave in one statement, as often as it takes to know the answer.

    A refused reference frees its slot: it was a duplicate, cancelled, or handed back by the statement.
    """

    def __init__(
        self, runs: Runs, slots: Slots, duty: Duty, kinds: Sequence[str], clock: Clock | None = None
    ) -> None:
        self._runs = runs
        self._slots = slots
        self._duty = duty
        self._kinds = kinds
        self._clock = clock or MonotonicClock()

    async def __call__(self, wave: Wave) -> Claimed:
        """Claim under this worker's id, once the database has lately heard from it."""
        worker_id = await self._duty.begin()
        asked_at = self._clock.now()
        runs = await self._claim(wave.references, worker_id)
        self._slots.claimed(self._clock.now() - asked_at)
        # The answer may have taken long: nothing starts before the database is known to count on this worker.
        # A wave without runs waits for nobody: what it handed back comes again, and would be acked with it.
        if runs and worker_id != await self._duty.begin():
            # Declared dead meanwhile: the janitor dispatches these again.
            runs = []
        if len(runs) < len(wave.references):
            claimed = {run.reference for run in runs}
            for reference in wave.references:
                if reference not in claimed:
                    self._slots.release(reference)
        return Claimed(wave, runs)

    async def _claim(self, references: list[Reference], worker_id: UUID) -> list[Run]:
        return await until_known(
            lambda: self._runs.claim(references, worker_id, self._kinds),
            (Unavailable, OutcomeUnknown, LockTimeout),
            lambda error: log.warning("claim repeated", references=len(references), error=str(error)),
            sleep=self._clock.sleep,
        )
