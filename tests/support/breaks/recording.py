"""What runs leave behind is not theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Recorded
from tests.support.breaks.examples import breaks, done, replace_last, taken
from tests.support.chronicle import bend
from tests.support.chronicle.pen import COMPLETED, IN_PROGRESS, PENDING

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


@breaks("recorded_once", "terminal_stays_terminal")
def completed_task_is_rescued(run: Chronicle) -> None:
    """A rescue that asks nothing again moves a task that has ended meanwhile."""
    task = run.whole_life()
    run.lose(task)
    done(run, task, "worker-2.1")


@breaks("recorded_once", "terminal_stays_terminal", "one_start_per_dispatch")
def run_ends_twice(run: Chronicle) -> None:
    task = run.whole_life()
    run.move(task, status=IN_PROGRESS, worker="w-1")
    run.effect("start", task)
    run.complete(task)


@breaks(
    "recorded_once",
    "dispatch_rises_only_with_a_new_hand_over",
    "one_start_per_dispatch",
    "idempotency_key_is_stable",
)
def replay_runs_under_the_dispatch_that_had_ended(run: Chronicle) -> None:
    task = taken(run)
    run.fail(task)
    run.replay(task)
    bend(run.changes, -1, dispatch=1)
    bend(run.rows, -1, dispatch=1)
    done(run, task)


@breaks("no_stale_write")
def result_of_a_dispatch_that_was_given_up(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.complete(task)
    run.results[task] = f'{{"task": "{task}", "dispatch": 1}}'


@breaks("no_stale_write")
def result_of_another_task(run: Chronicle) -> None:
    task = run.whole_life("a")
    other = run.whole_life("b")
    run.results[task] = run.results[other]


@breaks("no_stale_write")
def accepted_and_nothing_moved(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task)
    run.relay(task)
    run.answer_record(task, 2, "Done", COMPLETED)
    run.take(task, "worker-2.1")
    run.complete(task)


@breaks("no_stale_write")
def accepted_where_a_janitor_had_moved_it(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task)
    run.answer_record(task, 1, "Done", COMPLETED)
    done(run, task, "worker-2.1")


@breaks("no_stale_write")
def refused_and_another_run_moved(run: Chronicle) -> None:
    task = taken(run, expected="FAILED")
    run.lose(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    began = run.now
    run.fail(task)
    replace_last(run, Recorded, began=began, verdicts=[(task, 1, 0, "Dead", None)])


@breaks("no_stale_write")
def refused_and_another_run_repeated(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    began = run.now
    run.retry(task)
    replace_last(run, Recorded, began=began, verdicts=[(task, 1, 0, "Retry", None)])
    done(run, task, "worker-2.1")


@breaks("no_stale_write")
def repeat_moves_the_next_run(run: Chronicle) -> None:
    """The first call had moved its own run, and its reply was lost."""
    task = taken(run)
    run.retry(task)
    run.events.pop()
    run.relay(task)
    run.take(task, "worker-2.1")
    began = run.now
    run.retry(task)
    replace_last(run, Recorded, began=began, verdicts=[(task, 1, 0, "Retry", PENDING)])
    done(run, task, "worker-2.1")


@breaks("result_is_what_the_handler_returned")
def completed_without_a_result(run: Chronicle) -> None:
    del run.results[run.whole_life()]


@breaks("result_is_what_the_handler_returned")
def completed_by_a_handler_that_never_ended(run: Chronicle) -> None:
    run.whole_life()
    run.effects.pop()
