"""The checker of the chaos harness passes what is right, tells stories, and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.chaos.harness.checker import accounts, check, report, story
from tests.support.chronicle import Chronicle
from tests.support.chronicle.pen import CANCELLED, FAILED, PENDING

if TYPE_CHECKING:
    from collections.abc import Callable


def nothing(_run: Chronicle) -> None:
    """Nobody asked for anything."""


def whole_life(run: Chronicle) -> None:
    run.whole_life()


def batch_under_a_key(run: Chronicle) -> None:
    """A batch whose first answer was lost, and which was posted again."""
    run.post("a", "b", key="k", outcome="unknown")
    run.answer_post("a", "b", key="k", repeated=True)
    for task in ("id-of-a", "id-of-b"):
        run.relay(task)
        run.take(task)
        run.complete(task)


def post_that_was_never_written(run: Chronicle) -> None:
    run.answer_post("a", outcome="unknown")
    run.answer_post("b", outcome="refused", key="k")


def message_overtakes_the_mark(run: Chronicle) -> None:
    """A worker claims before the relay has deleted the row."""
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "CONFIRMED")
    run.take(task)
    run.settle(task, row)
    run.complete(task)


def retried_and_then_done(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.retry(task, delay_seconds=0.5)
    run.relay(task)
    run.take(task)
    run.complete(task)


def postponed_and_interrupted(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.record(task, "Retry", status=PENDING, dispatch=2, postponements=1)
    run.relay(task)
    run.take(task)
    run.record(task, "Interrupted", status=PENDING, dispatch=3)
    run.relay(task)
    run.take(task)
    run.complete(task)


def failed_and_replayed(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.fail(task)
    run.see(task)
    run.replay(task)
    run.see(task)
    run.relay(task)
    run.take(task)
    run.complete(task)
    run.see(task)


def worker_frozen_and_rescued(run: Chronicle) -> None:
    """The old run comes to its end after the new one, and its verdict is refused."""
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.fault("freeze", "worker-1")
    run.lose(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.beat("worker-1.1", alive=False)
    run.effect("end", task, dispatch=1)
    run.answer_record(task, 1, "Done", None)
    run.complete(task)


def verdict_asked_twice(run: Chronicle) -> None:
    """The reply to a verdict was lost; the repeat is answered as before, though the task has moved on."""
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.retry(task)
    run.relay(task)
    run.take(task)
    run.answer_record(task, 1, "Retry", PENDING)
    run.complete(task)


def cancelled_before_it_starts(run: Chronicle) -> None:
    """Its message is refused and acked."""
    task = run.post("a")
    run.relay(task)
    run.cancel(task)
    delivery = run.deliver(task)
    run.answer_claim(task, taken=False)
    run.let(delivery)
    run.answer_cancel(task)


def cancelled_while_it_runs(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.cancel(task)
    run.record(task, "Cancelled", status=CANCELLED)


def done_although_asked_to_stop(run: Chronicle) -> None:
    task = run.post("a", expected="FAILED")
    run.relay(task)
    run.take(task)
    run.cancel(task)
    run.complete(task)


def doubled_message(run: Chronicle) -> None:
    """A reference that the broker was thought to have lost comes twice."""
    task = run.post("a")
    run.relay(task)
    run.row(task)
    run.relay(task)
    first, second = run.deliver(task), run.deliver(task)
    run.claim(task)
    run.let(first)
    run.let(second)
    third = run.deliver(task)
    run.let(third)
    run.effect("start", task)
    run.complete(task)
    fourth = run.deliver(task, "worker-2.1")
    run.answer_claim(task, "worker-2.1", taken=False)
    run.let(fourth, "worker-2.1")


def handed_back_by_the_claim(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task)
    began = run.now
    run.tick()
    run.row(task)
    run.answer_claim(task, began=began, taken=False)
    run.let(delivery)
    run.relay(task)
    run.take(task)
    run.complete(task)


def returned_and_declared_again(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "RETURNED")
    run.publish(task, "CONFIRMED")
    run.settle(task, row)
    run.take(task)
    run.complete(task)


def kills_its_workers(run: Chronicle) -> None:
    """Four losses to dead workers, and the fifth is the end; the last worker's process is seen to exit."""
    task = run.post("a")
    for losses in range(1, 5):
        run.relay(task)
        run.take(task)
        before = run.task(task)
        run.move(task, worker=None, status=PENDING, dispatch=before.dispatch + 1, losses=losses)
        run.row(task)
    run.relay(task)
    run.take(task)
    before = run.task(task)
    run.exit("worker-1.1", -9, wanted=False)
    run.declare_dead("w-1")
    run.move(task, worker=None, status=FAILED, losses=5, reason="kills-worker")
    run.row(task, "tasks.dlq")
    run.letters.append((task, before.dispatch, "kills-worker"))
    run.relay(task)


def done_while_its_worker_drains(run: Chronicle) -> None:
    """A handler that ignores being stopped comes to its end before its timeout."""
    task = run.post("a", expected="FAILED")
    run.relay(task)
    run.take(task)
    run.fault("terminate", "worker-1")
    run.complete(task)
    run.exit("worker-1.1")


RIGHT = (
    nothing,
    whole_life,
    batch_under_a_key,
    post_that_was_never_written,
    message_overtakes_the_mark,
    retried_and_then_done,
    postponed_and_interrupted,
    failed_and_replayed,
    worker_frozen_and_rescued,
    verdict_asked_twice,
    cancelled_before_it_starts,
    cancelled_while_it_runs,
    done_although_asked_to_stop,
    doubled_message,
    handed_back_by_the_claim,
    returned_and_declared_again,
    kills_its_workers,
    done_while_its_worker_drains,
)


@pytest.mark.parametrize("happens", RIGHT, ids=lambda happens: happens.__name__)
def test_a_right_history_breaks_nothing(happens: Callable[[Chronicle], None]) -> None:
    run = Chronicle()
    happens(run)
    assert check(run.history()) == []


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
    told = [line[12:] for line in story(lost_task().history(), "id-of-a").splitlines()]
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
    assert story(Chronicle().history(), "run") == ""


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
