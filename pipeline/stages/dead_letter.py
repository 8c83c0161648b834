"""Ends what cannot be repeated; pure."""

from __future__ import annotations

from pipeline.flow import Stage
from pipeline.stages.execute import Failed
from pipeline.stages.route_retry import Routed
from storage.model import Dead, Verdict


class DeadLetter(Stage[Routed, Verdict]):
    """Turns a Failed that no retry took up into a Dead: FAILED, a dead letter, a notice to the DLQ."""

    async def __call__(self, routed: Routed) -> Verdict:
        """Give the verdict on one run."""
        return Dead(routed.run, routed.failure) if isinstance(routed, Failed) else routed
