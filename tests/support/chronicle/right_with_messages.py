"""Right histories in which messages come twice, late, or for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.chronicle import bend

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


def message_overtakes_the_mark(run: Chronicle) -> None:
    """A worker claims before the relay has deleted the row."""
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "CONFIRMED")
    run.take(task)
    run.settle(task, row)
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


def refused_because_another_takes_it(run: Chronicle) -> None:
    """What is acked right after a claim, as a duplicate of it."""
    task = run.post("a")
    run.relay(task)
    first, second, third = run.deliver(task), run.deliver(task), run.deliver(task, "worker-2.1")
    run.claim(task)
    run.let(run.deliver(task))
    run.answer_claim(task, "worker-2.1", taken=False)
    run.let(first)
    run.let(second)
    run.let(third, "worker-2.1")
    run.effect("start", task)
    run.complete(task)


def refused_because_it_was_given_up(run: Chronicle) -> None:
    """The second message of the first dispatch comes while the task waits under the second."""
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task, "worker-2.1")
    run.take(task)
    run.retry(task)
    run.tick()
    run.answer_claim(task, "worker-2.1", taken=False, dispatch=1)
    run.let(delivery, "worker-2.1")
    run.tick()
    run.relay(task)
    run.take(task)
    run.complete(task)


def refused_and_acked_with_its_duplicate(run: Chronicle) -> None:
    """The second message comes while the stage that heard the refusal still has the first."""
    task = run.post("a")
    run.relay(task)
    run.cancel(task)
    first = run.deliver(task)
    run.answer_claim(task, taken=False)
    second = run.deliver(task)
    run.let(first)
    run.let(second)


def given_back_on_a_drain(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.let(run.deliver(task), how="nack")
    run.take(task, "worker-2.1")
    run.complete(task)


def reference_of_a_task_that_nobody_knows(run: Chronicle) -> None:
    """As after a failover that lost the last moments."""
    task = run.whole_life()
    delivery = run.deliver(task)
    run.answer_claim(task, taken=False)
    run.let(delivery)
    bend(run.events, -3, references=[("unknown", 1)])
    bend(run.events, -2, asked=[("unknown", 1)])


RIGHT = (
    message_overtakes_the_mark,
    doubled_message,
    handed_back_by_the_claim,
    returned_and_declared_again,
    refused_because_another_takes_it,
    refused_because_it_was_given_up,
    refused_and_acked_with_its_duplicate,
    given_back_on_a_drain,
    reference_of_a_task_that_nobody_knows,
)
