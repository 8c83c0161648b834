"""The janitor's gauges of the queues: what waits in them, and who consumes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.broker import BrokerUnavailable
from pipeline.broker.topology import DLQ, WORK_QUEUES
from pipeline.flow import Stage

if TYPE_CHECKING:
    from pipeline.broker import Broker
    from pipeline.monitoring import Metrics


class SurveyQueues(Stage[None, None]):
    """Shows messages and consumers of the work queues and the DLQ, none of a silent one."""

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics

    async def __call__(self, _tick: None) -> None:
        """Look once at each; raises BrokerUnavailable where one did not answer."""
        ready, consumers = self._metrics.ready_messages, self._metrics.consumers
        depths, unanswered = {}, None
        for queue in (*WORK_QUEUES.values(), DLQ):
            try:
                depths[queue] = await self._broker.depth(queue)
            except BrokerUnavailable as error:
                unanswered = error
        ready.clear()
        consumers.clear()
        for queue, depth in depths.items():
            if depth is not None:
                ready.labels(queue).set(depth.ready)
                consumers.labels(queue).set(depth.consumers)
        if unanswered is not None:
            raise unanswered
