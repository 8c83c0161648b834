"""Something is left when the faults are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tests.chaos.harness.events import (
    Beaten,
    CancelAsked,
    DeclaredDead,
    Exited,
    Polled,
    RunEnded,
    Seen,
    Started,
)
from tests.support.breaks.examples import alive, breaks, done, forget_last, replace_last, taken
from tests.support.chronicle.pen import CANCELLED

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


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
def message_still_ready_in_its_queue(run: Chronicle) -> None:
    run.left["queues"] = {"tasks.low": (1, 0)}


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


def with_deadly_work(run: Chronicle, kind: str = "chaos.exit") -> str:
    """A task that ends its process runs, but it is found out before it has done so."""
    task = run.post("a", expected="FAILED")
    run.kinds[task] = kind
    run.relay(task)
    run.take(task)
    return task


@breaks("exits_are_clean")
def ended_by_what_does_no_such_thing(run: Chronicle) -> None:
    task = with_deadly_work(run, "chaos.permanent")
    run.fail(task)
    run.exit("worker-1.1", 3)


@breaks("exits_are_clean")
def ended_after_its_deadly_work_was_over(run: Chronicle) -> None:
    task = with_deadly_work(run)
    run.effect("end", task)
    run.fail(task)
    run.exit("worker-1.1", 3)


@breaks("exits_are_clean")
def ended_by_the_deadly_work_of_another(run: Chronicle) -> None:
    task = with_deadly_work(run)
    run.fail(task)
    run.exit("worker-2.1", 3)


@breaks("exits_are_clean")
def does_not_end(run: Chronicle) -> None:
    run.end()
    forget_last(run, Exited)
