"""Right histories in which a worker that was given up speaks again, or is given up for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Recorded, Rescued
from tests.support.chronicle.pen import CANCELLED, COMPLETED, FAILED, PENDING, STEP_SECONDS

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


def taken_over(run: Chronicle) -> str:
    """A task whose first worker was declared dead, and which the second runs."""
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.lose(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    return task


def end_with_the_second(run: Chronicle, task: str) -> None:
    run.relay(task)
    run.take(task, "worker-2.1", as_worker="w-3")
    run.complete(task)


def zombie_refused_while_its_successor_dies(run: Chronicle) -> None:
    """The janitor that moved it died too, before it could tell."""
    task = taken_over(run)
    began = run.now
    run.declare_dead("w-2")
    run.move(task, worker=None, status=PENDING, dispatch=3, losses=2)
    run.row(task)
    run.answer_record(task, 1, "Done", None, began=began)
    end_with_the_second(run, task)


def zombie_refused_while_the_fifth_death_ends_it(run: Chronicle) -> None:
    """As above: nobody tells of the death of the last worker but the change itself."""
    task = run.post("a")
    for worker in ("w-1", "w-2", "w-3", "w-4"):
        run.relay(task)
        run.take(task, as_worker=worker)
        run.lose(task)
    run.relay(task)
    run.take(task, as_worker="w-5")
    began = run.now
    run.declare_dead("w-5")
    run.move(task, worker=None, status=FAILED, losses=5, reason="kills-worker")
    run.row(task, "tasks.dlq")
    run.letters.append((task, 5, "kills-worker"))
    run.answer_record(task, 1, "Done", None, began=began)
    run.relay(task)


def zombie_refused_while_a_heartbeat_releases(run: Chronicle) -> None:
    task = taken_over(run)
    began = run.now
    run.move(task, worker=None, status=PENDING, dispatch=3)
    run.row(task)
    run.answer_record(task, 1, "Done", None, began=began)
    end_with_the_second(run, task)


def zombie_refused_while_a_janitor_finds_a_hung_run(run: Chronicle) -> None:
    task = taken_over(run)
    began = run.now
    run.move(task, worker=None, status=PENDING, dispatch=3, attempt=2)
    run.row(task)
    run.events.append(Rescued(at=run.tick(), by="janitor.1", runs=[(task, 2, PENDING)]))
    run.answer_record(task, 1, "Done", None, began=began)
    end_with_the_second(run, task)


def repeat_answered_while_the_next_run_ends(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.retry(task)
    run.events.pop()
    run.relay(task)
    run.take(task, "worker-2.1")
    began = run.now
    run.retry(task)
    run.answer_record(task, 1, "Retry", PENDING, began=began)
    end_with_the_second(run, task)


def zombie_refused_and_the_end_never_told(run: Chronicle) -> None:
    """The second worker died between the commit of its verdict and its line in the history."""
    task = taken_over(run)
    run.answer_record(task, 1, "Done", None)
    run.tick(STEP_SECONDS)
    run.complete(task)
    run.events = [event for event in run.events if not _tells(event, COMPLETED)]
    run.tick(STEP_SECONDS)
    run.answer_record(task, 1, "Done", None)


def refused_because_a_janitor_has_just_ended_it(run: Chronicle) -> None:
    """The verdict is on that very run, which hung in its last attempt; the janitor died before it told."""
    task = run.post("a", expected="FAILED")
    run.relay(task)
    run.take(task)
    began = run.now
    run.record(task, "Dead", status=FAILED, reason="timeout")
    run.events.pop()
    run.answer_record(task, 1, "Done", None, began=began)
    run.relay(task)


def cancelled_with_its_dead_worker(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.cancel(task)
    run.declare_dead("w-1")
    run.move(task, worker=None, status=CANCELLED, losses=1)
    run.answer_record(task, 1, "Done", None)


def dead_worker_asks_again_for_what_it_holds(run: Chronicle) -> None:
    """It had taken the run before its death; the reply had been lost."""
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task)
    run.claim(task)
    run.events.pop()
    run.declare_dead("w-1")
    run.tick()
    run.answer_claim(task)
    run.let(delivery)
    run.move(task, worker=None, status=PENDING, dispatch=2, losses=1)
    run.row(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.complete(task)


def declared_dead_while_it_claims(run: Chronicle) -> None:
    task = run.post("a")
    run.relay(task)
    delivery = run.deliver(task)
    began = run.now
    run.declare_dead("w-1")
    run.claim(task)
    run.events.pop()
    run.answer_claim(task, began=began)
    run.let(delivery)
    run.effect("start", task)
    run.complete(task)


def death_told_by_an_exit_alone(run: Chronicle) -> None:
    """The janitor died after it had declared the worker dead, before it could tell."""
    task = run.post("a")
    run.relay(task)
    run.take(task)
    run.exit("worker-1.1", -9, wanted=False)
    run.move(task, worker=None, status=PENDING, dispatch=2, losses=1)
    run.row(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.complete(task)


def lost_with_a_worker_that_nobody_heard_of(run: Chronicle) -> None:
    """Its process died before its first line."""
    task = run.post("a")
    run.relay(task)
    run.claim(task, as_worker="unheard")
    run.events.pop()
    run.move(task, worker=None, status=PENDING, dispatch=2, losses=1)
    run.row(task)
    run.relay(task)
    run.take(task)
    run.complete(task)


def _tells(event: object, status: int) -> bool:
    return isinstance(event, Recorded) and any(each[4] == status for each in event.verdicts)


RIGHT = (
    zombie_refused_while_its_successor_dies,
    zombie_refused_while_the_fifth_death_ends_it,
    zombie_refused_while_a_heartbeat_releases,
    zombie_refused_while_a_janitor_finds_a_hung_run,
    repeat_answered_while_the_next_run_ends,
    zombie_refused_and_the_end_never_told,
    refused_because_a_janitor_has_just_ended_it,
    cancelled_with_its_dead_worker,
    dead_worker_asks_again_for_what_it_holds,
    declared_dead_while_it_claims,
    death_told_by_an_exit_alone,
    lost_with_a_worker_that_nobody_heard_of,
)
