"""Histories in which all is right, each with something in it that a careless checker would take for wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Rescued
from tests.support.chronicle.pen import CANCELLED, FAILED, MAX_RETRIES, PENDING

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


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


def retried_and_then_done(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.retry(task, delay_seconds=2.5 * run.pace_seconds)
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


def every_retry_is_used(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    for _ in range(MAX_RETRIES):
        run.retry(task)
        run.relay(task)
        run.take(task)
    run.complete(task)


def cancelled_while_it_waits_for_its_retry(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.retry(task, delay_seconds=60.0)
    run.relay(task)
    run.cancel(task)


def hung_before_its_handler_started(run: Chronicle) -> None:
    """A janitor moves it after its timeout, which burns an attempt."""
    task = run.post("a")
    run.relay(task)
    run.claim(task)
    run.move(task, status=PENDING, dispatch=2, attempt=2, worker=None)
    run.row(task)
    run.events.append(Rescued(at=run.tick(), by="janitor.1", runs=[(task, 1, PENDING)]))
    run.relay(task)
    run.take(task)
    run.complete(task)


def timed_out_alone_before_its_handler_started(run: Chronicle) -> None:
    """After two losses it runs in a fresh process, which may take longer to start than it may run."""
    task = run.post("a")
    for worker in ("w-1", "w-2"):
        run.relay(task)
        run.take(task, as_worker=worker)
        run.lose(task)
    run.relay(task)
    run.claim(task, as_worker="w-3")
    run.retry(task)
    run.relay(task)
    run.take(task, as_worker="w-3")
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
    retried_and_then_done,
    postponed_and_interrupted,
    every_retry_is_used,
    cancelled_while_it_waits_for_its_retry,
    hung_before_its_handler_started,
    timed_out_alone_before_its_handler_started,
    failed_and_replayed,
    worker_frozen_and_rescued,
    verdict_asked_twice,
    cancelled_before_it_starts,
    cancelled_while_it_runs,
    done_although_asked_to_stop,
    kills_its_workers,
    done_while_its_worker_drains,
)
