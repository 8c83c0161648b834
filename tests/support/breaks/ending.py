"""Tasks end as they must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tests.chaos.harness.events import CancelAsked
from tests.support.breaks.examples import breaks, taken
from tests.support.chronicle import bend

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


@breaks("cancelled_never_starts")
def started_after_its_cancellation(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.cancel(task)
    run.effect("start", task)


@breaks("cancel_is_kept")
def answered_cancelled_and_never_was(run: Chronicle) -> None:
    task = taken(run)
    run.answer_cancel(task, task_status="CANCELLED")
    run.complete(task)


@breaks("cancel_is_kept")
def answered_cancelled_before_it_was(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.answer_cancel(task, task_status="CANCELLED")
    run.cancel(task)


@breaks("cancel_is_kept")
def asked_to_stop_and_retried(run: Chronicle) -> None:
    task = taken(run)
    run.cancel(task)
    run.retry(task)
    run.relay(task)
    run.take(task)
    run.complete(task)


@breaks("dead_letter_has_reason")
def failed_without_a_letter(run: Chronicle) -> None:
    run.fail(taken(run, expected="FAILED"))
    run.letters.clear()


@breaks("dead_letter_has_reason")
def letter_without_a_reason(run: Chronicle) -> None:
    task = taken(run, expected="FAILED")
    run.fail(task)
    run.letters[:] = [(task, 1, "")]


@breaks("dead_letter_has_reason")
def letter_of_what_never_failed(run: Chronicle) -> None:
    run.letters.append((run.whole_life(), 1, "error"))


@breaks("dead_letter_has_reason")
def failed_without_a_reason(run: Chronicle) -> None:
    task = taken(run, expected="FAILED")
    run.fail(task)
    bend(run.changes, -1, reason=None)


@breaks("dead_letter_has_reason")
def failed_without_an_error(run: Chronicle) -> None:
    run.fail(taken(run, expected="FAILED"))
    final = run.history().final.tasks[0]
    run.left["tasks"] = [msgspec.structs.replace(final, errors=0)]


@breaks("outcome_is_the_expected_one")
def failed_after_many_losses_and_not_by_them(run: Chronicle) -> None:
    task = run.post("a")
    for worker in ("w-1", "w-2", "w-3", "w-4", "w-5"):
        run.relay(task)
        run.take(task, as_worker=worker)
        run.lose(task)
    run.relay(task)
    run.take(task, as_worker="w-6")
    run.fail(task)


@breaks("outcome_is_the_expected_one")
def failed_and_should_have_completed(run: Chronicle) -> None:
    run.fail(taken(run))


@breaks("outcome_is_the_expected_one")
def completed_and_should_have_failed(run: Chronicle) -> None:
    run.whole_life(expected="FAILED")


@breaks("outcome_is_the_expected_one")
def completed_and_should_have_failed_before_its_worker_was_killed(run: Chronicle) -> None:
    task = taken(run, expected="FAILED")
    run.fault("kill", "worker-1")
    run.complete(task)
    run.exit("worker-1.1", -9, wanted=False)


@breaks("outcome_is_the_expected_one")
def cancelled_unasked(run: Chronicle) -> None:
    run.cancel(run.post("a"))
    run.relay("id-of-a")
    run.events[:] = [event for event in run.events if not isinstance(event, CancelAsked)]


@breaks("outcome_is_the_expected_one")
def given_up_after_too_few_losses(run: Chronicle) -> None:
    run.fail(taken(run), reason="kills-worker")
