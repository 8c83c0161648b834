"""The janitor's gauges: what waits in the outbox and in the queues, and who is there to work on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.broker.topology import DLQ, WORK_QUEUES, work_route
from pipeline.flow import Stage

if TYPE_CHECKING:
    from pipeline.broker import Broker
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


class SurveyQueues(Stage[None, None]):
    """Shows messages and consumers of the work queues and the DLQ, and nothing while the broker is away."""

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics

    async def __call__(self, _tick: None) -> None:
        """Look once; raises BrokerUnavailable."""
        ready, consumers = self._metrics.ready_messages, self._metrics.consumers
        try:
            depths = {queue: await self._broker.depth(queue) for queue in (*WORK_QUEUES.values(), DLQ)}
        finally:
            ready.clear()
            consumers.clear()
        for queue, depth in depths.items():
            if depth is not None:
                ready.labels(queue).set(depth.ready)
                consumers.labels(queue).set(depth.consumers)
