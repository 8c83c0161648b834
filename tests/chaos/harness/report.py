"""What a run leaves behind: `tests/chaos/reports/<seed>.json`."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import msgspec

from tests.chaos.harness.checker import accounts
from tests.chaos.harness.deployment import ROOT
from tests.chaos.harness.events import FaultBegan, FaultEnded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.harness.checker import Violation
    from tests.chaos.harness.history import History
    from tests.chaos.harness.run import Scenario

REPORTS = ROOT / "tests" / "chaos" / "reports"


def report_on(
    history: History, violations: Sequence[Violation], scenario: Scenario, versions: Mapping[str, str]
) -> dict[str, object]:
    """Sum a run up: what was run, what happened to it, and what came of it."""
    broken: dict[str, int] = {}
    for violation in violations:
        broken[violation.invariant] = broken.get(violation.invariant, 0) + 1
    return {
        "seed": scenario.seed,
        "seconds": scenario.seconds,
        "commit": commit(),
        "versions": {**versions, "cores": os.cpu_count()},
        "violations": broken,
        **accounts(history),
        "faults": _faults(history),
    }


def keep(name: str, report: object) -> None:
    """Write a report to tests/chaos/reports."""
    REPORTS.mkdir(exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (REPORTS / f"{name}.json").write_bytes(text + b"\n")


def commit() -> str:
    """Name the commit of the checkout; with a plus where it has changes."""
    try:
        command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12")
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no repository"


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
