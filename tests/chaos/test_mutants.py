"""The checker is checked: programs with one mistake each are found out, and called by the right name.

The unchanged program passes the same scenario. A mistake may need luck to show, so a mutant that got away is
tried with another seed; one that is caught for another reason than its own is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.harness import checker, faults
from tests.chaos.harness.deployment import WHOLE
from tests.chaos.harness.mutants import MUTANTS
from tests.chaos.harness.nemesis import Planned
from tests.chaos.harness.run import Scenario, run
from tests.chaos.harness.servers import private_servers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.harness.history import History

pytestmark = pytest.mark.alone

SEEDS = (1, 2, 3)
PARTS = tuple(part for part in WHOLE if part.name not in ("relay-2", "worker-3"))
REST_SECONDS = 90.0
MUTANT_REST_SECONDS = 40.0
"""Some mutants never come to rest; what the broker lost is sent again after two or three rounds of 10 s."""

# When a fault begins, which it is, and whom it meets.
SCENARIOS: dict[str, tuple[tuple[float, str, str], ...]] = {
    "quiet": (),
    "frozen": ((4, "freeze-beyond-lease", "worker-1"), (13, "freeze-beyond-lease", "worker-2")),
    "forgetful": (
        (4, "delete-queue", ""),
        (5, "purge-queue", ""),
        (6, "lose-confirm", "relay-1"),
        (8, "cut", "relay-1"),
        (10, "delete-queue", ""),
        (11, "lose-confirm", "relay-1"),
    ),
    # Nobody takes from the queue while it is deleted, so that messages are lost with it.
    "emptied": (
        (3, "freeze-beyond-lease", "worker-1"),
        (3.1, "freeze-beyond-lease", "worker-2"),
        (5, "delete-queue", ""),
    ),
    "crashing": ((4, "restart-postgres", ""), (9, "kill", "gateway"), (12, "restart-postgres", "")),
}

CAUGHT = {
    "mark_before_confirm": ("quiet", "row_leaves_after_confirm"),
    "returns_not_raised": ("forgetful", "row_leaves_after_confirm"),
    "verdict_without_guard": ("frozen", "no_stale_write"),
    "rescue_without_recheck": ("frozen", "terminal_stays_terminal"),
    "attempts_burnt_by_outages": ("forgetful", "no_row_counted_without_return"),
    "cursor_relay": ("quiet", "everything_ends"),
    "ack_before_claim": ("quiet", "ack_after_claim"),
    "created_before_commit": ("crashing", "accepted_is_durable"),
    "claim_skips_locked": ("quiet", "claim_refuses_only_what_does_not_wait"),
    "resend_raises_dispatch": ("emptied", "dispatch_rises_only_with_a_new_hand_over"),
    "claim_takes_cancelled": ("quiet", "cancelled_never_starts"),
    "retry_at_once": ("quiet", "no_early_start"),
    "replay_keeps_dispatch": ("quiet", "dispatch_rises_only_with_a_new_hand_over"),
}


async def history_of(folder: Path, scenario: str, seed: int, mutant: str, rest_seconds: float) -> History:
    planned = [Planned(at, faults.named(name), target) for at, name, target in SCENARIOS[scenario]]
    asked = Scenario(
        seed, 12.0, planned, PARTS, mutant, tasks_per_second=100, watch_seconds=0, rest_seconds=rest_seconds
    )
    async with private_servers(folder) as servers:
        return await run(asked, folder, servers)


def test_each_mutant_has_a_scenario() -> None:
    assert set(CAUGHT) == set(MUTANTS)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_unchanged_program_passes(scenario: str, tmp_path: Path) -> None:
    history = await history_of(tmp_path / "run", scenario, SEEDS[0], "", REST_SECONDS)
    violations = checker.check(history)
    assert not violations, checker.report(history, violations)


@pytest.mark.parametrize("mutant", CAUGHT)
async def test_a_mutant_is_caught(mutant: str, tmp_path: Path) -> None:
    scenario, expected = CAUGHT[mutant]
    found: set[str] = set()
    for seed in SEEDS:
        history = await history_of(tmp_path / str(seed), scenario, seed, mutant, MUTANT_REST_SECONDS)
        found |= {violation.invariant for violation in checker.check(history)}
        if expected in found:
            return
    pytest.fail(f"{mutant} passed for what it is not: {sorted(found)}")
