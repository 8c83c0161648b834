"""Reads a history and nothing else, and says which invariants it breaks, and how that came about."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.chaos.harness.accounts import count
from tests.chaos.harness.invariants import INVARIANTS
from tests.chaos.harness.invariants.timeline import Timeline, grouped
from tests.chaos.harness.story import tell

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tests.chaos.harness.history import History

MOST_SAID = 5
"""How many violations of one invariant a report names; the first brings its story."""


class Violation(NamedTuple):
    """One invariant that does not hold: for which task, program or worker, or for the whole run; and how."""

    invariant: str
    subject: str
    said: str


def check(history: History) -> list[Violation]:
    """List what does not hold, in the order of the invariants."""
    timeline = Timeline(history)
    return [
        Violation(invariant.__name__, subject, said)
        for invariant in INVARIANTS
        for subject, said in invariant(timeline)
    ]


def report(history: History, violations: Sequence[Violation]) -> str:
    """Tell the seed, each invariant that is broken, and the whole story of one task for each."""
    if not violations:
        return f"seed {history.seed}: all {len(INVARIANTS)} invariants hold"
    lines = [f"seed {history.seed}: {len(violations)} violations"]
    for invariant, found in grouped(violations, lambda violation: violation.invariant).items():
        lines += ["", f"{invariant}: {len(found)}"]
        lines += [f"  {violation.subject}: {violation.said}" for violation in found[:MOST_SAID]]
        told = next((tell(history, violation.subject) for violation in found), "")
        lines += ["", *(f"  {line}" for line in told.splitlines())]
    return "\n".join(lines)


def accounts(history: History) -> dict[str, Any]:
    """Count what happened in a run and what it cost, for its report."""
    return count(Timeline(history))
