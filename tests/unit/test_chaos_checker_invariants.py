"""Each invariant of the chaos checker is broken by hand, alone, and is the one that is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.chaos.harness.checker import check
from tests.chaos.harness.events import (
    Beaten,
    Buried,
    CancelAsked,
    Counted,
    DeclaredDead,
    Exited,
    Polled,
    Recorded,
    RunEnded,
    Seen,
    Settling,
    Started,
)
from tests.chaos.harness.invariants import INVARIANTS
from tests.support.histories import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    NEW,
    PENDING,
    Chronicle,
    bend,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Break = Callable[[Chronicle], object]

BREAKS: list[tuple[str, frozenset[str], Break]] = []


def breaks(invariant: str, *also: str) -> Callable[[Break], Break]:
    """Note that what follows breaks this invariant, and those that cannot hold then, and no other."""

    def note(happens: Break) -> Break:
        BREAKS.append((invariant, frozenset({invariant, *also}), happens))
        return happens

    return note


def taken(run: Chronicle, name: str = "a", **post: Any) -> str:
    """A task whose handler runs."""
    task = run.post(name, **post)
    run.relay(task)
    run.take(task)
    return task


def done(run: Chronicle, task: str, by: str = "worker-1.1") -> None:
    """Carry a task that waits with a new outbox row to its end."""
    run.relay(task)
    run.take(task, by)
    run.complete(task)


def replace_last(run: Chronicle, kind: type, **fields: Any) -> None:
    """Change what the last event of a kind says."""
    place = max(place for place, event in enumerate(run.events) if isinstance(event, kind))
    run.events[place] = msgspec.structs.replace(run.events[place], **fields)


def forget_last(run: Chronicle, kind: type) -> None:
    """Take the last event of a kind away."""
    run.events.pop(max(place for place, event in enumerate(run.events) if isinstance(event, kind)))


def alive(run: Chronicle, seconds: float) -> None:
    """Let time pass in which every process does what it is there for."""
    run.tick(seconds)
    run.beat("worker-1.1")
    run.beat("worker-2.1")
    run.declare_dead()
    run.events.append(Polled(at=run.tick(), by="relay-1.1", rows=[]))
    seen: dict[str, Any] = {"task_status": "NEW", "dispatch": 1, "replay": 0, "began": run.now}
    run.events.append(Seen(at=run.tick(), by="client", task="somebody's", **seen))


# What clients were answered.


@breaks("accepted_is_durable")
def answered_and_never_written(run: Chronicle) -> None:
    run.answer_post("a")


@breaks("accepted_is_durable")
def answered_with_the_id_of_another(run: Chronicle) -> None:
    run.whole_life("a")
    run.whole_life("b")
    run.answer_post("a", ids=["id-of-b"])


@breaks("accepted_is_durable")
def batch_answered_in_part(run: Chronicle) -> None:
    run.post("a", "b", outcome="unknown")
    run.answer_post("a", "b", ids=["id-of-a"])
    done(run, "id-of-a")
    done(run, "id-of-b")


@breaks("no_phantom")
def task_that_nobody_posted(run: Chronicle) -> None:
    run.create("id-of-a", "a")
    done(run, "id-of-a")


@breaks("no_phantom")
def task_of_a_refused_post(run: Chronicle) -> None:
    run.answer_post("a", outcome="refused")
    run.create("id-of-a", "a")
    done(run, "id-of-a")


@breaks("no_phantom")
def post_without_answer_written_twice(run: Chronicle) -> None:
    done(run, run.post("a", outcome="unknown"))
    run.create("another", "a")
    done(run, "another")


@breaks("one_key_one_task")
def key_answered_with_two_tasks(run: Chronicle) -> None:
    run.whole_life("a", key="k")
    run.whole_life("b", key="k")
    run.keys["k"] = ["id-of-a", "id-of-b"]


@breaks("one_key_one_task")
def key_that_was_not_kept(run: Chronicle) -> None:
    run.whole_life("a", key="k")
    del run.keys["k"]


@breaks("one_key_one_task")
def key_without_its_tasks(run: Chronicle) -> None:
    run.answer_post("a", key="k", outcome="unknown")
    run.keys["k"] = ["id-of-a"]


@breaks("one_key_one_task")
def key_whose_row_is_in_another_order(run: Chronicle) -> None:
    run.post("a", "b", key="k")
    done(run, "id-of-a")
    done(run, "id-of-b")
    run.keys["k"] = ["id-of-b", "id-of-a"]


@breaks("task_and_outbox_together")
def payload_without_its_task(run: Chronicle) -> None:
    run.left["payloads_without_task"] = 1


@breaks("task_and_outbox_together")
def task_without_its_row(run: Chronicle) -> None:
    task = run.post("a")
    run.rows.clear()
    run.take(task)
    run.complete(task)


@breaks("task_and_outbox_together")
def retry_without_its_row(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task)
    run.rows.pop()
    run.take(task)
    run.complete(task)


@breaks("task_and_outbox_together")
def row_of_a_dispatch_that_never_was(run: Chronicle) -> None:
    task = run.whole_life()
    row = run.row(task, dispatch=7)
    run.poll(task, row)
    bend(run.events, -1, rows=[(row, task, 1, "tasks.medium")])
    run.publish(task, "CONFIRMED")
    run.settle(task, row)


@breaks("task_and_outbox_together")
def row_without_its_task(run: Chronicle) -> None:
    run.whole_life()
    run.rows.append(
        msgspec.structs.replace(run.rows[0], number=99, row=99, task="nobody", operation="INSERT")
    )
    run.left["outbox"] = []


@breaks("reads_never_go_back")
def status_goes_back(run: Chronicle) -> None:
    task = run.whole_life()
    run.see(task)
    run.see(task, task_status="IN_PROGRESS")


@breaks("reads_never_go_back")
def dispatch_goes_back(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task)
    run.see(task)
    run.see(task, dispatch=1)
    done(run, task)


@breaks("reads_never_go_back")
def end_becomes_another(run: Chronicle) -> None:
    task = run.whole_life()
    run.see(task)
    run.see(task, task_status="FAILED")


# How tasks move.


@breaks("state_machine")
def begins_as_something_else(run: Chronicle) -> None:
    run.whole_life()
    bend(run.changes, 0, attempt=2)
    for place in range(1, len(run.changes)):
        bend(run.changes, place, attempt=2)


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


# What runs leave behind.


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


@breaks("result_is_what_the_handler_returned")
def completed_without_a_result(run: Chronicle) -> None:
    del run.results[run.whole_life()]


@breaks("result_is_what_the_handler_returned")
def completed_by_a_handler_that_never_ended(run: Chronicle) -> None:
    run.whole_life()
    run.effects.pop()


# From the outbox to the broker.


@breaks("row_leaves_after_confirm")
def settled_before_it_is_published(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    run.settle(task, row)
    run.publish(task, "CONFIRMED")
    run.take(task)
    run.complete(task)


@breaks("row_leaves_after_confirm")
def settled_after_a_return(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task, "RETURNED")
    run.take(task)
    run.complete(task)


@breaks("row_leaves_after_confirm")
def settled_by_the_confirm_of_an_earlier_row(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.settle(task, run.poll(task, run.row(task)))
    run.take(task)
    run.complete(task)


@breaks("row_leaves_after_confirm")
def settled_by_the_confirm_of_another_route(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "CONFIRMED", "tasks.medium.retry.1s")
    run.settle(task, row)
    run.take(task)
    run.complete(task)


@breaks("row_leaves_after_confirm")
def settled_by_who_had_not_leased_it(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    forget_last(run, Polled)
    run.publish(task, "CONFIRMED")
    run.settle(task, row)
    run.take(task)
    run.complete(task)


@breaks("row_leaves_after_confirm")
def deleted_by_nobody(run: Chronicle) -> None:
    run.whole_life()
    forget_last(run, Settling)


@breaks("no_row_counted_without_return")
def attempt_counted_of_what_was_never_answered(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "UNKNOWN")
    run.events.append(Counted(at=run.tick(), by="relay-1.1", rows=[row], failed=[]))
    done(run, task)


@breaks("no_row_failed")
def row_fails(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "RETURNED")
    run.events.append(Counted(at=run.tick(), by="relay-1.1", rows=[row], failed=[row]))
    run.row(task, operation="UPDATE", row=row, status=1, attempts=5)
    run.row(task, operation="UPDATE", row=row)
    done(run, task)


# From the broker to a handler.


@breaks("ack_after_claim")
def acked_before_the_claim(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.let(run.deliver(task))
    run.claim(task)
    run.effect("start", task)
    run.complete(task)


@breaks("ack_after_claim")
def acked_by_another_process_than_claims(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task)
    run.claim(task, "worker-2.1")
    run.let(delivery)
    run.effect("start", task)
    run.complete(task)


@breaks("ack_after_claim")
def acked_on_the_word_of_an_earlier_claim(run: Chronicle) -> None:
    """The claim gave it back through the outbox, and that row's message is let go without another."""
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task)
    began = run.now
    run.tick()
    run.row(task)
    run.answer_claim(task, began=began, taken=False)
    run.relay(task)
    again = run.deliver(task)
    run.let(delivery)
    run.let(again)
    run.take(task)
    run.complete(task)


@breaks("ack_after_claim")
def acked_what_had_not_come(run: Chronicle) -> None:
    run.let(99)


@breaks("ack_after_claim")
def notice_acked_before_its_burial(run: Chronicle) -> None:
    task = taken(run, expected="FAILED")
    run.fail(task)
    run.let(run.deliver(task, queue="tasks.dlq"))
    run.events.append(Buried(at=run.tick(), by="worker-1.1", began=run.now, references=[(task, 1)]))


@breaks("claim_refuses_only_what_does_not_wait")
def refused_what_waits(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task)
    run.tick()
    run.answer_claim(task, taken=False)
    run.let(delivery)
    run.tick()
    run.row(task)
    done(run, task)


@breaks("claim_refuses_only_what_does_not_wait")
def refused_what_a_relay_was_just_marking(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "CONFIRMED")
    delivery = run.deliver(task)
    run.tick()
    began = run.now
    run.settle(task, row)
    run.answer_claim(task, began=began, taken=False)
    run.let(delivery)
    run.tick()
    run.row(task)
    done(run, task)


@breaks("one_start_per_dispatch")
def started_twice(run: Chronicle) -> None:
    task = taken(run)
    run.effect("start", task)
    run.complete(task)


@breaks("one_start_per_dispatch")
def started_before_it_is_taken(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.effect("start", task)
    delivery = run.deliver(task)
    run.claim(task)
    run.let(delivery)
    run.complete(task)


@breaks("one_start_per_dispatch")
def taken_under_two_names(run: Chronicle) -> None:
    task = taken(run)
    run.answer_claim(task, "worker-2.1")
    run.complete(task)


@breaks("idempotency_key_is_stable")
def key_changes_with_the_dispatch(run: Chronicle) -> None:
    task = taken(run)
    run.retry(task)
    done(run, task)
    for place in (-1, -2):
        bend(run.effects, place, idempotency_key="another")


@breaks("idempotency_key_is_stable")
def key_is_the_same_after_a_replay(run: Chronicle) -> None:
    task = taken(run)
    run.fail(task)
    run.replay(task)
    done(run, task)
    for place in (-1, -2):
        bend(run.effects, place, idempotency_key=run.effects[0].idempotency_key)


@breaks("idempotency_key_is_stable")
def key_of_another_task(run: Chronicle) -> None:
    run.whole_life("a")
    run.whole_life("b")
    for place in (-1, -2):
        bend(run.effects, place, idempotency_key=run.effects[0].idempotency_key)


# How tasks end.


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


@breaks("outcome_is_the_expected_one")
def failed_and_should_have_completed(run: Chronicle) -> None:
    run.fail(taken(run))


@breaks("outcome_is_the_expected_one")
def completed_and_should_have_failed(run: Chronicle) -> None:
    run.whole_life(expected="FAILED")


@breaks("outcome_is_the_expected_one")
def cancelled_unasked(run: Chronicle) -> None:
    run.cancel(run.post("a"))
    run.relay("id-of-a")
    run.events[:] = [event for event in run.events if not isinstance(event, CancelAsked)]


@breaks("outcome_is_the_expected_one")
def given_up_after_too_few_losses(run: Chronicle) -> None:
    run.fail(taken(run), reason="kills-worker")


# Who is at work.


@breaks("a_death_is_decided_once")
def declared_dead_by_two_janitors(run: Chronicle) -> None:
    run.declare_dead("w-1")
    run.declare_dead("w-1")


@breaks("a_death_is_decided_once")
def takes_after_its_declaration(run: Chronicle) -> None:
    run.declare_dead("w-1")
    run.whole_life()


@breaks("a_death_is_decided_once")
def takes_after_it_was_told(run: Chronicle) -> None:
    run.beat("worker-1.1", alive=False)
    run.whole_life()


@breaks("a_loss_is_a_death")
def lost_with_a_worker_that_lives(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task)
    forget_last(run, DeclaredDead)
    done(run, task)


@breaks("a_loss_is_a_death")
def lost_with_a_worker_that_had_drained(run: Chronicle) -> None:
    task = taken(run)
    run.exit("worker-1.1")
    run.lose(task)
    forget_last(run, DeclaredDead)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.complete(task)


# When the faults are over.


@breaks("everything_ends")
def never_ends(run: Chronicle) -> None:
    run.relay(run.post("a"))


@breaks("everything_ends")
def not_at_rest(run: Chronicle) -> None:
    run.end()
    replace_last(run, RunEnded, at_rest=False, said="3 messages left")


@breaks("everything_ends")
def run_without_an_end(run: Chronicle) -> None:
    run.end()
    forget_last(run, RunEnded)


@breaks("everything_ends")
def ends_too_late(run: Chronicle) -> None:
    task = taken(run)
    run.fault()
    for _ in range(4):
        alive(run, 20.0)
    run.complete(task)


@breaks("nothing_is_left")
def row_still_waits(run: Chronicle) -> None:
    run.row(run.whole_life())


@breaks("nothing_is_left")
def message_still_lies_in_its_queue(run: Chronicle) -> None:
    run.left["queues"] = {"tasks.low": (0, 1)}


@breaks("nothing_is_left")
def transaction_still_open(run: Chronicle) -> None:
    run.left["idle_in_transaction"] = 1


@breaks("nothing_is_left")
def worker_still_holds_it(run: Chronicle) -> None:
    run.whole_life()
    final = run.history().final.tasks[0]
    run.left["tasks"] = [msgspec.structs.replace(final, worker="w-1")]


@breaks("conservation")
def task_is_gone(run: Chronicle) -> None:
    run.post("a", outcome="unknown")
    done(run, "id-of-a")
    run.left["tasks"] = []


@breaks("conservation")
def end_that_no_change_led_to(run: Chronicle) -> None:
    run.whole_life()
    final = run.history().final.tasks[0]
    run.left["tasks"] = [msgspec.structs.replace(final, losses=1)]


@breaks("conservation")
def task_that_was_never_created(run: Chronicle) -> None:
    run.whole_life("a")
    run.answer_post("b", outcome="unknown")
    run.answer_cancel("id-of-a", outcome="unknown")
    replace_last(run, CancelAsked, task="id-of-b")
    final = run.history().final.tasks[0]
    other = msgspec.structs.replace(final, id="id-of-b", name="b", status=CANCELLED)
    run.left["tasks"] = [final, other]


@breaks("conservation")
def task_is_there_twice(run: Chronicle) -> None:
    run.whole_life()
    run.left["tasks"] = run.history().final.tasks * 2


@breaks("living_processes_make_progress")
def worker_falls_silent(run: Chronicle) -> None:
    run.fault()
    alive(run, 20.0)
    forget_last(run, Beaten)
    alive(run, 20.0)


@breaks("living_processes_make_progress")
def relay_falls_silent(run: Chronicle) -> None:
    run.fault()
    alive(run, 20.0)
    forget_last(run, Polled)
    alive(run, 20.0)


@breaks("living_processes_make_progress")
def janitor_falls_silent(run: Chronicle) -> None:
    run.fault()
    alive(run, 20.0)
    forget_last(run, DeclaredDead)
    alive(run, 20.0)


@breaks("living_processes_make_progress")
def gateway_answers_nobody(run: Chronicle) -> None:
    run.fault()
    for _ in range(2):
        alive(run, 20.0)
        forget_last(run, Seen)


@breaks("living_processes_make_progress")
def process_that_never_spoke(run: Chronicle) -> None:
    run.fault()
    run.events.append(Started(at=run.tick(), by="harness", program="worker-3", pid=23))
    alive(run, 20.0)
    alive(run, 20.0)
    run.end()
    run.events.append(Exited(at=run.tick(), by="harness", program="worker-3", pid=23, code=-9, wanted=False))


@breaks("exits_are_clean")
def ends_with_an_error(run: Chronicle) -> None:
    run.exit("worker-1.1", 1)


@breaks("exits_are_clean")
def killed_when_it_did_not_end(run: Chronicle) -> None:
    run.exit("relay-1.1", -9)


@breaks("exits_are_clean")
def killed_by_the_signal_that_asks(run: Chronicle) -> None:
    alive(run, 20.0)
    run.exit("janitor.1", -15)


@breaks("exits_are_clean")
def does_not_end(run: Chronicle) -> None:
    run.end()
    forget_last(run, Exited)


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
