"""Decides whether and by which way a failed run is repeated; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.broker.topology import retry_route, work_route
from pipeline.flow import Stage
from pipeline.stages.execute import Failed, Outcome
from storage.model import Cancelled, Done, Interrupted, Retry

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_POSTPONEMENTS = 20

Routed = Done | Failed | Retry | Cancelled | Interrupted


class RouteRetry(Stage[Outcome, Routed]):
    """Turns a Failed that may be repeated into a Retry.

    The nth repeat waits the nth of `delays_seconds`, the last one repeats. A delay with a retry queue is
    spent there, any other in the outbox. A handler that asks for a delay burns no attempt, 20 times.
    """

    def __init__(self, delays_seconds: Sequence[int] = (5, 30, 120)) -> None:
        self._delays_seconds = tuple(delays_seconds)

    async def __call__(self, outcome: Outcome) -> Routed:
        """Route one outcome."""
        if not isinstance(outcome, Failed) or not outcome.retryable:
            return outcome
        run = outcome.run
        if outcome.delay_seconds is not None and run.postponements < MOST_POSTPONEMENTS:
            return self._retry(outcome, outcome.delay_seconds, burns_attempt=False)
        if run.attempt > run.max_retries:
            return outcome
        nth = min(run.attempt, len(self._delays_seconds)) - 1
        delay_seconds = self._delays_seconds[nth] if outcome.delay_seconds is None else outcome.delay_seconds
        return self._retry(outcome, delay_seconds, burns_attempt=True)

    def _retry(self, failed: Failed, delay_seconds: float, *, burns_attempt: bool) -> Retry:
        in_queue = delay_seconds in self._delays_seconds
        priority = failed.run.priority
        return Retry(
            run=failed.run,
            failure=failed.failure,
            route=retry_route(priority, int(delay_seconds)) if in_queue else work_route(priority),
            delay_seconds=float(delay_seconds),
            waits_in_outbox=not in_queue,
            burns_attempt=burns_attempt,
        )
