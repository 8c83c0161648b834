"""What a run leaves behind: `tests/chaos/reports/<seed>.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.checker import accounts
from tests.chaos.harness.events import FaultBegan, FaultEnded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.harness.checker import Violation
    from tests.chaos.harness.history import History
    from tests.chaos.harness.run import Scenario


def report_on(
    history: History, violations: Sequence[Violation], scenario: Scenario, origin: Mapping[str, object]
) -> dict[str, object]:
    """Sum a run up: what was run, what happened to it, and what came of it."""
    broken: dict[str, int] = {}
    for violation in violations:
        broken[violation.invariant] = broken.get(violation.invariant, 0) + 1
    return {
        "seed": scenario.seed,
        "seconds": scenario.seconds,
        **origin,
        "violations": broken,
        **accounts(history),
        "faults": _faults(history),
    }


def _faults(history: History) -> list[dict[str, object]]:
    began = {event.number: event.at for event in history.events if isinstance(event, FaultBegan)}
    start = min(began.values(), default=0.0)
    ended = sorted(
        (event for event in history.events if isinstance(event, FaultEnded)), key=lambda event: event.number
    )
    return [
        {
            "fault": event.fault,
            "target": event.target,
            "from_seconds": round(began[event.number] - start, 2),
            "to_seconds": round(event.at - start, 2),
            "bit": event.bit,
            "proof": event.proof,
            "in_flight": event.in_flight,
        }
        for event in ended
    ]
