"""Rows leave the outbox too soon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Counted, Polled, Settling
from tests.support.breaks.examples import breaks, done, forget_last

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


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


@breaks("row_leaves_after_confirm")
def deleted_before_anybody_settles_it(run: Chronicle) -> None:
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "CONFIRMED")
    run.delete(task, row)
    run.events.append(Settling(at=run.tick(), by="relay-1.1", rows=[row]))
    run.take(task)
    run.complete(task)


@breaks("no_row_failed")
def row_fails_and_is_cleared_by_a_replay(run: Chronicle) -> None:
    """That it goes without having been sent is right: it had been given up."""
    task = run.post("a")
    row = run.poll(task)
    run.publish(task, "RETURNED")
    run.events.append(Counted(at=run.tick(), by="relay-1.1", rows=[row], failed=[row]))
    run.row(task, operation="UPDATE", row=row, status=1, attempts=5)
    run.row(task, operation="DELETE", row=row, status=1, attempts=5)
    run.row(task)
    done(run, task)


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
