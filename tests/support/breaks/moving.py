"""Tasks move as they must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tests.support.breaks.examples import breaks, done, taken
from tests.support.chronicle import bend
from tests.support.chronicle.pen import CANCELLED, COMPLETED, FAILED, NEW, PENDING

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


@breaks("state_machine")
def begins_as_something_else(run: Chronicle) -> None:
    run.whole_life()
    bend(run.changes, 0, attempt=2)
    for place in range(1, len(run.changes)):
        bend(run.changes, place, attempt=2)


@breaks("state_machine")
def begins_in_the_hands_of_a_worker(run: Chronicle) -> None:
    run.whole_life()
    bend(run.changes, 0, worker="w-1")


@breaks("state_machine")
def begins_with_its_cancellation_asked(run: Chronicle) -> None:
    run.cancel(run.post("a"))
    run.relay("id-of-a")
    bend(run.changes, 0, cancel_requested=True)


@breaks("state_machine")
def waits_with_its_cancellation_asked(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.move(task, cancel_requested=True)
    run.take(task)
    run.complete(task)


@breaks("state_machine")
def run_is_cancelled_unasked(run: Chronicle) -> None:
    task = taken(run)
    run.record(task, "Cancelled", status=CANCELLED, cancel_requested=True)
    run.answer_cancel(task)


@breaks("state_machine")
def moves_without_being_created(run: Chronicle) -> None:
    run.whole_life()
    bend(run.changes, 0, old_status=NEW, old_dispatch=1)


@breaks("state_machine")
def completes_without_having_run(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task)
    began = run.now
    run.results[task] = '{"task": "id-of-a", "dispatch": 1}'
    run.move(task, status=COMPLETED)
    run.answer_claim(task, began=began, taken=False)
    run.let(delivery)
    run.effect("end", task)


@breaks("state_machine")
def taken_by_two_workers(run: Chronicle) -> None:
    task = taken(run)
    run.move(task, worker="w-2")
    run.complete(task)


@breaks("state_machine")
def waits_with_a_worker(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task)
    bend(run.changes, -1, worker="w-1")
    done(run, task)


@breaks("state_machine")
def two_counts_rise_at_once(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task, attempt=2)
    done(run, task, "worker-2.1")


@breaks("state_machine")
def replay_number_rises_by_itself(run: Chronicle) -> None:
    task = taken(run)
    run.move(task, replay=1)
    run.complete(task)
    run.effects[-1] = msgspec.structs.replace(run.effects[-1], idempotency_key="id-of-a-1")
    run.effects[-2] = msgspec.structs.replace(run.effects[-2], idempotency_key="id-of-a-1")


@breaks("state_machine")
def request_to_cancel_is_forgotten(run: Chronicle) -> None:
    task = taken(run)
    run.cancel(task)
    run.move(task, cancel_requested=False)
    run.complete(task)


@breaks("state_machine")
def a_change_is_missing(run: Chronicle) -> None:
    run.whole_life()
    mark = next(place for place, change in enumerate(run.changes) if change.status == PENDING)
    del run.changes[mark]


@breaks("dispatch_rises_only_with_a_new_hand_over")
def sending_again_raises_the_dispatch(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.move(task, dispatch=2)
    run.row(task)
    done(run, task)


@breaks("dispatch_rises_only_with_a_new_hand_over")
def replay_keeps_the_dispatch(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.cancel(task)
    run.replay(task)
    bend(run.changes, -1, dispatch=1)
    bend(run.rows, -1, dispatch=1)
    run.relay(task)
    run.cancel(task)


@breaks("dispatch_rises_only_with_a_new_hand_over")
def dispatch_falls(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task)
    run.relay(task)
    run.move(task, dispatch=1)
    run.move(task, dispatch=2)
    run.take(task)
    run.complete(task)


@breaks("terminal_stays_terminal")
def cancelled_task_fails(run: Chronicle) -> None:
    task = run.post("a", expected="FAILED")
    run.relay(task)
    run.cancel(task)
    run.move(task, status=FAILED, reason="error")
    run.letters.append((task, 1, "error"))


@breaks("terminal_stays_terminal")
def completed_task_is_replayed(run: Chronicle) -> None:
    task = run.whole_life()
    run.replay(task)
    done(run, task)


@breaks("terminal_stays_terminal", "recorded_once")
def replay_keeps_its_number(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.cancel(task)
    run.replay(task)
    bend(run.changes, -1, replay=0)
    run.relay(task)
    run.cancel(task)


@breaks("terminal_stays_terminal")
def failed_task_begins_anew_unasked(run: Chronicle) -> None:
    task = taken(run)
    run.fail(task)
    run.begin_anew(task)
    done(run, task)


@breaks("terminal_stays_terminal")
def replay_that_was_refused(run: Chronicle) -> None:
    task = taken(run)
    run.fail(task)
    run.replay(task)
    bend(run.events, -1, outcome="refused")
    done(run, task)


@breaks("terminal_stays_terminal")
def replay_keeps_the_losses(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.fail(task)
    run.replay(task)
    bend(run.changes, -1, losses=1)
    done(run, task, "worker-2.1")


@breaks("attempts_bounded")
def attempt_beyond_the_retries(run: Chronicle) -> None:
    task = taken(run)
    for _ in range(4):
        run.retry(task)
        run.relay(task)
        run.take(task)
    run.complete(task)


@breaks("attempts_bounded")
def attempt_burnt_without_a_start(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.claim(task)
    run.retry(task)
    done(run, task)


@breaks("no_early_start")
def retry_starts_early(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task, delay_seconds=60.0)
    done(run, task)


@breaks("no_early_start")
def delayed_task_starts_early(run: Chronicle) -> None:
    task = run.post("a")
    bend(run.changes, 0, due_seconds=60.0)
    run.take(task)
    run.complete(task)
    run.left["outbox"] = []
