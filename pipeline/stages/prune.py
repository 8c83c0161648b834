"""The janitor's removal of what is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pipeline.flow import Stage

if TYPE_CHECKING:
    from pipeline.ports import Upkeep

log = structlog.get_logger()

MOST_ROWS = 500
"""How many rows of a kind one statement removes: it must never hold many locks for long."""

MOST_STEPS = 100
"""Steps of a round: 50,000 rows, of a second or two."""


class Prune(Stage[None, None]):
    """Removes ended tasks and unreadable letters past their retention, expired keys, workers long dead."""

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
