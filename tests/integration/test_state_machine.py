"""Hypothesis calls the ledger in any order, twice, late and at once, and compares it with a plain model."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from pipeline.broker.topology import work_route
from storage.ledger import PostgresLedger
from storage.model import OutboxRow, Priority, Reference, Run
from tests.support import builders
from tests.support.backends import MemoryBackend, PostgresBackend
from tests.support.calls import KINDS, OWNER, STRANGER
from tests.support.gate import Gate
from tests.support.ledgers import connected
from tests.support.side_by_side import LONG_SECONDS, SHORT_SECONDS, TICK_SECONDS, SideBySide

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from storage.database import Address
    from storage.model import Caller, Verdict
    from tests.support.backends import Backend
    from tests.support.calls import Call
    from tests.support.plain_model import PlainModel

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "100"))
STEPS = 40

VERDICTS = ("done", "dead", "retry", "retry in the outbox", "later", "cancelled", "interrupted")
T = TypeVar("T")

TASKS: Bundle[UUID] = Bundle("tasks")
WORKERS: Bundle[UUID] = Bundle("workers")
# Which of the rows or runs that were told, counted from the latest. No bundles: how many are told depends on
# which of two racing calls was first, and what Hypothesis draws may not.
WHICH = st.integers(0, 15)

PRIORITIES = st.sampled_from([Priority.HIGH, Priority.LOW])
CALLERS = st.sampled_from([OWNER, OWNER, OWNER, STRANGER])
DELAYS = st.sampled_from([0.0, 0.0, SHORT_SECONDS])
# How often a call is made: its reply may be lost.
TIMES = st.sampled_from([1, 1, 1, 2])
# The present dispatch of a task, one that is over, or one that is yet to come.
ASIDE = st.sampled_from([0, 0, 0, 0, -1, -1, 1])


def some(one: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(one, min_size=1, max_size=3)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, backend: Backend, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        super().__init__()
        self.run = run
        self.sides = SideBySide(backend)
        self.calls = self.sides.calls
        self.rows: list[OutboxRow] = []
        self.runs: list[Run] = []
        self.agree = True
        run(self.sides.begin())

    @property
    def model(self) -> PlainModel:
        return self.sides.model

    def teardown(self) -> None:
        if self.agree:
            self.both(self.sides.finish())

    def make(self, call: Call, times: int = 1) -> Any:
        return self.both(self.sides.make(call, times))

    def both(self, step: Coroutine[Any, Any, Any]) -> Any:
        self.agree = False
        answer = self.run(step)
        self.agree = True
        return answer

    def present(self, task_id: UUID) -> Reference:
        return self.model.tasks[task_id].reference

    def references(self, chosen: Iterable[tuple[UUID, int]]) -> list[Reference]:
        presents = [(self.present(task_id), aside) for task_id, aside in chosen]
        return list(dict.fromkeys(Reference(one.task_id, one.dispatch + aside) for one, aside in presents))

    # Clients.

    @initialize(target=TASKS)
    def submits_first(self) -> UUID:
        return self._submit(times=1, max_retries=1)

    @rule(
        target=TASKS,
        priority=PRIORITIES,
        kind=st.sampled_from(KINDS),
        max_retries=st.integers(0, 2),
        delay_seconds=st.sampled_from([0.0, 0.0, SHORT_SECONDS, LONG_SECONDS]),
        key=st.sampled_from([None, None, "k", "l"]),
        fingerprint=st.sampled_from("ffg"),
        times=TIMES,
    )
    def submits(self, times: int, **asked: Any) -> Any:
        task_id = self._submit(times, **asked)
        return task_id if task_id in self.model.tasks else multiple()

    def _submit(self, times: int, **asked: Any) -> UUID:
        submission = builders.submission(timeout_seconds=TICK_SECONDS, **asked)
        self.make(self.calls.submit(submission), times)
        return submission.id

    @rule(task_id=TASKS)
    def submits_again(self, task_id: UUID) -> None:
        """The answer was lost long ago."""
        self.make(self.calls.submit(self.model.tasks[task_id].asked))

    @rule(task_id=TASKS, caller=CALLERS, times=TIMES)
    def cancels(self, task_id: UUID, caller: Caller, times: int) -> None:
        self.make(self.calls.cancel(caller, task_id), times)

    @rule(task_id=TASKS, aside=ASIDE, caller=CALLERS, times=TIMES)
    def replays(self, task_id: UUID, aside: int, caller: Caller, times: int) -> None:
        [reference] = self.references([(task_id, aside)])
        self.make(self.calls.replay(caller, reference), times)

    @rule(which=WHICH, caller=CALLERS, times=TIMES)
    def retries_a_row(self, which: int, caller: Caller, times: int) -> None:
        for row in _told(self.rows, [which], by=attrgetter("id")):
            self.make(self.calls.retry(caller, row), times)

    # The relay.

    @rule(most=st.sampled_from([1, 2, 1000]), times=TIMES)
    def polls(self, most: int, times: int) -> None:
        self._poll(most, times)

    def _poll(self, most: int = 1000, times: int = 1) -> list[OutboxRow]:
        rows: list[OutboxRow] = self.make(self.calls.poll(most), times)
        self.rows += rows
        return rows

    @rule()
    def relays(self) -> None:
        """As long as all is well."""
        self.make(self.calls.settle(self._poll()))

    @rule(chosen=some(WHICH), times=TIMES)
    def settles(self, chosen: list[int], times: int) -> None:
        if rows := _told(self.rows, chosen, by=attrgetter("id")):
            self.make(self.calls.settle(rows), times)

    @rule(
        chosen=some(WHICH),
        what=st.sampled_from(["renews", "releases", "counts", "counts the last"]),
        delay_seconds=DELAYS,
        times=TIMES,
    )
    def keeps(self, chosen: list[int], what: str, delay_seconds: float, times: int) -> None:
        """The broker has not answered yet, did not take the rows, or returned them."""
        if not (rows := _told(self.rows, chosen, by=attrgetter("id"))):
            return
        match what:
            case "renews":
                self.make(self.calls.renew(rows), times)
            case "releases":
                self.make(self.calls.release_rows(rows, delay_seconds), times)
            case _:
                most = 1 if what == "counts the last" else 2
                self.make(self.calls.returned(rows, most, delay_seconds), times)

    # Workers.

    @initialize(target=WORKERS)
    def boots_first(self) -> UUID:
        return self._boot()

    @rule(target=WORKERS)
    def boots(self) -> UUID:
        return self._boot()

    def _boot(self) -> UUID:
        worker_id = uuid4()
        self.make(self.calls.beat(worker_id), 2)
        return worker_id

    @rule(worker_id=WORKERS, how=st.sampled_from([None, None, *VERDICTS]), times=TIMES)
    def works(self, worker_id: UUID, how: str | None, times: int) -> None:
        """As long as all is well; without a verdict the runs go on."""
        self.relays()
        runs = self._claim([task.reference for task in self.model.tasks.values()], worker_id)
        if how and runs:
            self.make(self.calls.record([_verdict(run, how, "a") for run in runs]), times)

    @rule(
        chosen=some(st.tuples(TASKS, ASIDE)),
        worker_id=WORKERS,
        kinds=st.sampled_from([KINDS, KINDS, KINDS[:1]]),
        times=TIMES,
    )
    def claims(
        self, chosen: list[tuple[UUID, int]], worker_id: UUID, kinds: tuple[str, ...], times: int
    ) -> None:
        self._claim(self.references(chosen), worker_id, kinds, times)

    def _claim(
        self,
        references: list[Reference],
        worker_id: UUID,
        kinds: tuple[str, ...] = KINDS,
        times: int = 1,
    ) -> list[Run]:
        runs: list[Run] = self.make(self.calls.claim(references, worker_id, kinds), times)
        self.runs += runs
        return runs

    @rule(chosen=some(WHICH), how=st.sampled_from(VERDICTS), text=st.sampled_from("ab"), times=TIMES)
    def records(self, chosen: list[int], how: str, text: str, times: int) -> None:
        if runs := _told(self.runs, chosen, by=attrgetter("reference")):
            self.make(self.calls.record([_verdict(run, how, text) for run in runs]), times)

    @rule(
        chosen=some(st.tuples(TASKS, ASIDE)),
        delay_seconds=st.sampled_from([None, 0.0, SHORT_SECONDS]),
        times=TIMES,
    )
    def come_back(self, chosen: list[tuple[UUID, int]], delay_seconds: float | None, times: int) -> None:
        """References: handed back, or, without a delay, found in the DLQ."""
        references = self.references(chosen)
        if delay_seconds is None:
            self.make(self.calls.bury(references), times)
        else:
            self.make(self.calls.hand_back(references, delay_seconds), times)

    @rule(chosen=some(st.tuples(TASKS, ASIDE)), worker_id=WORKERS, times=TIMES)
    def releases_runs(self, chosen: list[tuple[UUID, int]], worker_id: UUID, times: int) -> None:
        self.make(self.calls.release_runs(self.references(chosen), worker_id), times)

    @rule(task_id=TASKS, times=st.integers(1, 6))
    def kills_its_workers(self, task_id: UUID, times: int) -> None:
        """Whom nobody has heard of counts as dead."""
        for _ in range(times):
            self._claim([self.present(task_id)], uuid4())
            self.make(self.calls.rescue(1000))

    @rule(
        worker_id=WORKERS,
        what=st.sampled_from(["time passes", "falls silent", "signs off", "pauses"]),
        priority=PRIORITIES,
        times=TIMES,
    )
    def happens(self, worker_id: UUID, what: str, priority: Priority, times: int) -> None:
        match what:
            case "time passes":
                self.run(self.sides.pass_time(times))
            case "falls silent":
                self._falls_silent(worker_id, times)
            case "signs off":
                self.make(self.calls.close(worker_id), times)
            case "pauses":
                backend = self.sides.backend
                act = backend.resume if priority in self.model.paused else backend.pause
                self.run(act(work_route(priority)))
                self.model.paused ^= {priority}

    def _falls_silent(self, worker_id: UUID, times: int) -> None:
        """All others are heard of; who is declared dead may act on, and beat too late."""
        self.run(self.sides.pass_time(1))
        for other in sorted(self.model.workers.keys() - {worker_id} - self.model.dead):
            self.make(self.calls.beat(other))
        self.make(self.calls.declare_dead(), times)
        self.make(self.calls.beat(worker_id))

    # The janitor.

    @rule(
        what=st.sampled_from(["rescues", "rescues", "resends", "resends", "restarts"]),
        most=st.sampled_from([1, 1000]),
        times=TIMES,
    )
    def janitor(self, what: str, most: int, times: int) -> None:
        match what:
            case "rescues":
                self.make(self.calls.rescue(most), times)
            case "resends":
                for priority in Priority:
                    self.make(self.calls.resend(priority, SHORT_SECONDS), times)
            case "restarts":
                self.make(self.calls.restart_volatile(), times)


def _told(told: Sequence[T], chosen: Iterable[int], by: Callable[[T], object]) -> list[T]:
    """Counted from the latest on, and none twice."""
    those = [told[-1 - which % len(told)] for which in chosen] if told else []
    return list({by(one): one for one in those}.values())


def _verdict(run: Run, how: str, text: str) -> Verdict:
    in_queue = builders.retry(run, int(SHORT_SECONDS), failure=builders.failure(text))
    in_outbox = replace(in_queue, route=work_route(run.priority), waits_in_outbox=True)
    ways: dict[str, Verdict] = {
        "done": builders.done(run, f'"{text}"'),
        "dead": builders.dead(run, text),
        "later": replace(in_outbox, burns_attempt=False),
        "cancelled": builders.cancelled(run),
        "interrupted": builders.interrupted(run),
    }
    if run.attempt <= run.max_retries:
        ways |= {"retry": in_queue, "retry in the outbox": in_outbox}
    return ways.get(how, ways["dead"])


class PostgresMachine(LedgerMachine):
    """Statements also meet: the first has looked at two tasks, and waits at the first of them."""

    def __init__(self, backend: Backend, run: Callable[[Coroutine[Any, Any, Any]], Any], gate: Gate) -> None:
        super().__init__(backend, run)
        self.gate = gate

    @rule(
        first=st.sampled_from(["records", "releases", "rescues"]),
        second=st.sampled_from(["records", "releases", "cancels"]),
        nth=st.integers(0, 1),
        verdicts=st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)),
    )
    def meet_at_runs(self, first: str, second: str, nth: int, verdicts: tuple[str, str]) -> None:
        """Nobody has heard of their worker."""
        worker_id, ids = uuid4(), [self._submit(times=1), self._submit(times=1)]
        runs = self._claim([self.present(task_id) for task_id in ids], worker_id)

        def call(what: str, runs: list[Run], how: str) -> Call:
            match what:
                case "records":
                    return self.calls.record([_verdict(run, how, "a") for run in runs])
                case "releases":
                    return self.calls.release_runs([run.reference for run in runs], worker_id)
                case "rescues":
                    return self.calls.rescue(1000)
            return self.calls.cancel(OWNER, runs[0].task_id)

        one, other = call(first, runs, verdicts[0]), call(second, [runs[nth]], verdicts[1])
        self.both(self.sides.race(one, other, self.gate, ids[0]))

    @rule(
        first=st.sampled_from(["claims", "settles", "counts"]),
        second=st.sampled_from(["claims", "settles", "counts", "cancels"]),
        nth=st.integers(0, 1),
        most=st.integers(1, 2),
    )
    def meet_at_waiting_tasks(self, first: str, second: str, nth: int, most: int) -> None:
        ids = [self._submit(times=1), self._submit(times=1)]
        rows = [row for row in self._poll() if row.task_id in ids]

        def call(what: str, rows: list[OutboxRow]) -> Call:
            match what:
                case "claims":
                    return self.calls.claim([row.reference for row in rows], uuid4())
                case "settles":
                    return self.calls.settle(rows)
                case "counts":
                    return self.calls.returned(rows, most, 0.0)
            return self.calls.cancel(OWNER, rows[0].task_id)

        one, other = call(first, rows), call(second, [rows[nth]])
        self.both(self.sides.race(one, other, self.gate, ids[0]))


def explore(machine: Callable[[], LedgerMachine]) -> None:
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # it takes any factory of one
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="TEST_EXAMPLES" not in os.environ,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_ledger_in_memory_does_as_the_model() -> None:
    with asyncio.Runner() as runner:
        explore(lambda: LedgerMachine(MemoryBackend(), runner.run))


def test_postgres_does_as_the_model(ledger_database: Address) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        ledger = runner.run(stack.enter_async_context(PostgresLedger(ledger_database, timeout_seconds=60.0)))
        watch = runner.run(stack.enter_async_context(connected(ledger_database)))
        gate = runner.run(stack.enter_async_context(Gate.built(watch)))
        backend = PostgresBackend(ledger, watch)

        def machine() -> PostgresMachine:
            runner.run(backend.empty())
            return PostgresMachine(backend, runner.run, gate)

        try:
            explore(machine)
        finally:
            runner.run(stack.aclose())
