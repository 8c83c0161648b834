"""The checker of the chaos harness passes what is right, tells stories, and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.chaos.harness.checker import accounts, check, report
from tests.chaos.harness.invariants.timeline import CLOCKS_SECONDS
from tests.chaos.harness.story import tell
from tests.support.chronicle import Chronicle, right, right_at_rest, right_with_messages, right_with_zombies
from tests.support.chronicle.pen import COMPLETED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.harness.history import History

RIGHT = (*right.RIGHT, *right_at_rest.RIGHT, *right_with_messages.RIGHT, *right_with_zombies.RIGHT)


def with_clock_ahead(history: History, seconds: float) -> History:
    """The same, as it is written down when the database's clock was compared badly."""
    return msgspec.structs.replace(
        history,
        tasks=[msgspec.structs.replace(change, at=change.at + seconds) for change in history.tasks],
        outbox=[msgspec.structs.replace(change, at=change.at + seconds) for change in history.outbox],
    )


@pytest.mark.parametrize("happens", RIGHT, ids=lambda happens: happens.__name__)
def test_a_right_history_breaks_nothing(happens: Callable[[Chronicle], None]) -> None:
    run = Chronicle()
    happens(run)
    assert check(run.history()) == []


@pytest.mark.parametrize("seconds", [-0.8 * CLOCKS_SECONDS, 0.8 * CLOCKS_SECONDS])
@pytest.mark.parametrize("happens", RIGHT, ids=lambda happens: happens.__name__)
def test_clocks_may_differ_a_little(happens: Callable[[Chronicle], None], seconds: float) -> None:
    """Events follow each other faster than the clocks agree, so that effects seem to precede their causes."""
    run = Chronicle()
    run.pace_seconds = CLOCKS_SECONDS / 4
    happens(run)
    assert check(with_clock_ahead(run.history(), seconds)) == []


@pytest.mark.parametrize("happens", RIGHT, ids=lambda happens: happens.__name__)
def test_whatever_is_missing_can_be_checked_and_reported(happens: Callable[[Chronicle], None]) -> None:
    run = Chronicle()
    happens(run)
    history = run.history()
    for field in ("events", "tasks", "outbox", "effects"):
        records = getattr(history, field)
        for place in range(len(records)):
            less = msgspec.structs.replace(history, **{field: [*records[:place], *records[place + 1 :]]})
            assert report(less, check(less))
            assert accounts(less)


def lost_task() -> Chronicle:
    """A run with one task that a claim refused though it waited."""
    run = Chronicle()
    task = run.post("a")
    run.relay(task)
    run.fault()
    delivery = run.deliver(task)
    run.tick()
    run.answer_claim(task, taken=False)
    run.tick()
    run.let(delivery)
    return run


def test_a_report_tells_the_seed_the_invariant_and_the_story() -> None:
    history = lost_task().history()
    told = report(history, check(history))
    assert told.startswith("seed 7: 2 violations\n")
    assert "\nclaim_refuses_only_what_does_not_wait: 1\n  id-of-a: worker-1.1 was refused dispatch 1" in told
    assert "\neverything_ends: 1\n  id-of-a: a, a chaos.ok, is PENDING at the end\n" in told
    assert told.count("the story of id-of-a, a\n") == 2


def test_a_report_of_nothing_says_so() -> None:
    assert report(Chronicle().history(), []).startswith("seed 7: all ")


def test_a_story_tells_all_that_happened_by_time() -> None:
    told = [line[12:] for line in tell(lost_task().history(), "id-of-a").splitlines()]
    parts = (
        "database       NEW 1 (attempt 1, losses 0, postponements 0, replay 0)",
        "database       outbox INSERT row 1: dispatch 1 by tasks.medium",
        "client         POST of 1 under key None: ok, 201",
        "relay-1.1      leased row 1: dispatch 1 by tasks.medium",
        "relay-1.1      published dispatch 1 by tasks.medium: CONFIRMED",
        "relay-1.1      is about to delete rows [1]",
        "database       outbox DELETE row 1: dispatch 1 by tasks.medium",
        "database       NEW 1 -> PENDING 1",
        "nemesis        fault 1 begins: kill relay-1",
        "nemesis        fault 1 is over: kill relay-1, bit: seen",
        "worker-1.1     delivery 1 from tasks.medium brings dispatch 1",
        "worker-1.1     claimed dispatch 1 for worker w-1, took nothing",
        "worker-1.1     ack of delivery 1, dispatch 1",
        "harness        relay-1, pid 11, ended with 0",
    )
    places = [next(n for n, line in enumerate(told) if line.startswith(part)) for part in parts]
    assert places == sorted(places)
    assert "database       FinalTask(id='id-of-a'" in told[-1]


def test_a_run_has_no_story() -> None:
    assert tell(Chronicle().history(), "run") == ""


def test_accounts_count_what_happened() -> None:
    run = Chronicle()
    run.whole_life("a")
    run.fault("kill", "worker-1")
    began = run.now
    second = run.post("b", key="k", outcome="unknown")
    run.answer_post("b", key="k", repeated=True)
    run.relay(second)
    run.take(second)
    run.lose(second)
    run.relay(second)
    run.take(second)
    run.retry(second)
    run.answer_record(second, 1, "Done", None)
    run.relay(second)
    run.row(second)
    run.relay(second)
    run.take(second)
    run.complete(second)
    completed_after = round(run.task(second).at - began, 2)
    delivery = run.deliver(second)
    run.answer_claim(second, taken=False)
    run.let(delivery)
    third = run.post("c")
    run.cancel(third)
    counted = accounts(run.history())
    assert counted.pop("by_status") == {
        "NEW": 0,
        "PENDING": 0,
        "IN_PROGRESS": 0,
        "COMPLETED": 2,
        "FAILED": 0,
        "CANCELLED": 1,
    }
    assert counted.pop("load_seconds") > 0
    assert counted.pop("tasks_per_second") > 0
    assert counted == {
        "tasks": 3,
        "accepted": 3,
        "innocents_lost_to_losses": 0,
        "faults": 1,
        "faults_that_bit": 1,
        "faults_by_class": {"kill": 1},
        "overlapping_share": 0.0,
        "references_delivered": 5,
        "duplicates_delivered": 1,
        "claims_refused": 1,
        "sent_again": 1,
        "stale_verdicts_refused": 1,
        "unknown_outcomes": {
            "posts": 1,
            "posts_that_were_written": 1,
            "posts_that_were_not": 0,
            "cancels": 0,
        },
        "losses": 1,
        "retries": 1,
        "postponements": 0,
        "interrupted": 0,
        "handlers_started": 4,
        "most_starts_of_a_task": 3,
        "recovery_seconds": {"kill": {"median": completed_after, "worst": completed_after, "faults": 1}},
    }


def test_a_record_that_repeats_another_breaks_nothing() -> None:
    run = Chronicle()
    run.whole_life("repeated")
    run.tick(5)
    run.answer_record("id-of-repeated", 1, "Done", COMPLETED)
    assert check(run.history()) == []
