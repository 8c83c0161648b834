"""The janitor's gauges of the outbox: what waits in it, and who is there to work on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.broker.topology import work_route
from pipeline.flow import Stage

if TYPE_CHECKING:
    from pipeline.monitoring import Metrics
    from pipeline.ports import Outbox, Upkeep

MOST_ROWS = 10_000
"""How far rows are counted: an outbox of a million must cost no more; from there on the age tells."""


class SurveyOutbox(Stage[None, None]):
    """Shows the backlog of the outbox and the live workers; shows nothing while the database is away."""

    def __init__(self, upkeep: Upkeep, outbox: Outbox, metrics: Metrics) -> None:
        self._upkeep = upkeep
        self._outbox = outbox
        self._metrics = metrics

    async def __call__(self, _tick: None) -> None:
        """Look once; raises what the database raised."""
        metrics = self._metrics
        try:
            backlog = await self._upkeep.backlog(MOST_ROWS)
            capacity = await self._outbox.capacity()
        except Exception:
            for gauge in (metrics.due_rows, metrics.oldest_due, metrics.workers):
                gauge.clear()
            metrics.failed_rows.set(math.nan)
            raise
        for priority, due in backlog.due.items():
            metrics.due_rows.labels(work_route(priority)).set(due.rows)
            metrics.oldest_due.labels(work_route(priority)).set(due.oldest_seconds)
        for priority, found in capacity.items():
            metrics.workers.labels(work_route(priority)).set(found.workers)
        metrics.failed_rows.set(backlog.failed)
