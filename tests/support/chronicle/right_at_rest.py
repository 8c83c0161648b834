"""Right histories that end in an unusual way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Polled

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


def stay_busy(run: Chronicle, seconds: float) -> None:
    """Let time pass in which every process does what it is there for."""
    for _ in range(int(seconds // 20)):
        run.tick(20.0)
        run.beat("worker-1.1")
        run.beat("worker-2.1")
        run.declare_dead()
        run.events.append(Polled(at=run.tick(), by="relay-1.1", rows=[]))
        run.see("id-of-a")


def due_in_two_minutes(run: Chronicle) -> None:
    run.post("a", delay_seconds=120.0)
    stay_busy(run, 140.0)
    run.relay("id-of-a")
    run.take("id-of-a")
    run.complete("id-of-a")


def replaced_by_another_process(run: Chronicle) -> None:
    """A worker that was killed early is silent ever after; its successor is not there yet."""
    run.whole_life()
    run.exit("worker-2.1", -9, wanted=False)
    run.fault()
    for _ in range(2):
        run.tick(20.0)
        run.beat("worker-1.1")
        run.declare_dead()
        run.events.append(Polled(at=run.tick(), by="relay-1.1", rows=[]))
        run.see("id-of-a")


def asked_to_end_while_it_starts(run: Chronicle) -> None:
    """The interpreter has not yet said what it does with the signal."""
    run.exit("janitor.1", -15)


def asked_to_end_while_its_work_ends_it(run: Chronicle) -> None:
    task = run.post("a", expected="FAILED")
    run.kinds[task] = "chaos.exit"
    run.relay(task)
    run.take(task)
    run.exit("worker-1.1", 3)
    run.lose(task)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.fail(task, reason="kills-worker")


RIGHT = (
    due_in_two_minutes,
    replaced_by_another_process,
    asked_to_end_while_it_starts,
    asked_to_end_while_its_work_ends_it,
)
