"""Messages are let go too soon, and handlers start that must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Buried
from tests.support.breaks.examples import breaks, done, taken
from tests.support.chronicle import bend

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


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
