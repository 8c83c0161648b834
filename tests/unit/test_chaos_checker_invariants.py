"""Each invariant of the chaos checker is broken by hand, alone, and is the one that is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.harness.checker import check
from tests.chaos.harness.invariants import INVARIANTS
from tests.support.breaks import BREAKS
from tests.support.chronicle import Chronicle

if TYPE_CHECKING:
    from tests.support.breaks.examples import Break


@pytest.mark.parametrize(
    ("expected", "happens"),
    [each[1:] for each in BREAKS],
    ids=[f"{name}-{happens.__name__}" for name, _, happens in BREAKS],
)
def test_a_break_is_called_by_its_name(expected: frozenset[str], happens: Break) -> None:
    run = Chronicle()
    happens(run)
    violations = check(run.history())
    assert {violation.invariant for violation in violations} == expected, violations


def test_every_invariant_has_been_seen_broken() -> None:
    assert {name for name, _, _ in BREAKS} == {invariant.__name__ for invariant in INVARIANTS}
