"""The dead work, and the living are called dead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import DeclaredDead, Exited
from tests.support.breaks.examples import breaks, done, forget_last, taken

if TYPE_CHECKING:
    from tests.support.chronicle import Chronicle


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


@breaks("a_loss_is_a_death", "exits_are_clean")
def lost_with_a_worker_that_lives_for_ever(run: Chronicle) -> None:
    task = taken(run)
    run.lose(task)
    forget_last(run, DeclaredDead)
    done(run, task)
    run.end()
    run.events = [event for event in run.events if not (isinstance(event, Exited) and event.pid == 21)]


@breaks("a_loss_is_a_death")
def lost_with_a_worker_that_had_drained(run: Chronicle) -> None:
    task = taken(run)
    run.exit("worker-1.1")
    run.lose(task)
    forget_last(run, DeclaredDead)
    run.relay(task)
    run.take(task, "worker-2.1")
    run.complete(task)
