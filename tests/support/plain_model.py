"""The ledger in plain words: a dict of tasks, a dict of outbox rows, and the status model between them.

Written from the rules, to compare a real ledger with: no SQL, no races, nothing for speed. Its methods are
those of `pipeline.ports`. Where a ledger may choose (which rows of many), the model says among what, and is
told what was chosen. Time is a number that `now` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pipeline.broker.topology import DLQ, work_route
from storage.model import (
    Accepted,
    Caller,
    Cancelled,
    Dead,
    Done,
    Failure,
    Interrupted,
    KeyReused,
    Priority,
    Reason,
    Reference,
    Retry,
    Status,
    Submission,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

NEW, PENDING, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = Status
WAITING = (NEW, PENDING)
MOST_LOSSES = 5
ERRORS_KEPT = 20
UNKNOWN_KIND_SECONDS = 30.0
NOT_NOW_SECONDS = 1.0

WORKER_LOST = Failure("WorkerLost", "its worker died", Reason.WORKER_LOST)
KILLS_WORKER = Failure("WorkerLost", "its worker died", Reason.KILLS_WORKER)
HUNG = Failure("TimeoutError", "its worker did not end it in time", Reason.TIMEOUT)


class Noted(NamedTuple):
    """An error in a task's history."""

    dispatch: int
    attempt: int
    failure: Failure


class Again(NamedTuple):
    """By which way a task is dispatched again, when it is due, how long its row is held back till then."""

    route: str = ""
    due_seconds: float = 0.0
    hold_seconds: float = 0.0


AT_ONCE = Again()


class Letter(NamedTuple):
    """A dead letter."""

    reason: str
    attempt: int
    losses: int
    replay: int
    errors: tuple[Noted, ...]


@dataclass
class End:
    """How a run ended, whoever ended it; with its verdict, if it was that."""

    status: Status
    failure: Failure | None
    result: str | None
    cancel_requested: bool
    verdict: Verdict | None = field(default=None, compare=False)


@dataclass
class Task:
    asked: Submission
    due_at: float | None = None
    dispatch: int = 1
    replay: int = 0
    replayed: int | None = None
    """The dispatch that the last replay replayed."""
    status: Status = NEW
    attempt: int = 1
    losses: int = 0
    postponements: int = 0
    cancel_requested: bool = False
    worker_id: UUID | None = None
    started_at: float | None = None
    queued_at: float | None = None
    reason: Reason | None = None
    result: str | None = None
    errors: tuple[Noted, ...] = ()
    ends: dict[int, End] = field(default_factory=dict)
    """How the run of each dispatch ended."""

    @property
    def reference(self) -> Reference:
        return Reference(self.asked.id, self.dispatch)


@dataclass
class Row:
    """An outbox row, held back or leased until a moment that may be past."""

    reference: Reference
    priority: Priority
    route: str
    available_at: float
    leased_until: float | None = None
    attempts: int = 0
    failed: bool = False


class PlainModel:
    def __init__(self) -> None:
        self.now = 0.0
        self.tasks: dict[UUID, Task] = {}
        self.rows: dict[int, Row] = {}
        self.unnumbered: list[Row] = []
        """Rows just written: the ledger gives them their numbers."""
        self.letters: dict[Reference, Letter] = {}
        self.keys: dict[str, Submission] = {}
        self.workers: dict[UUID, float] = {}
        """When each was last seen."""
        self.dead: set[UUID] = set()
        self.paused: set[Priority] = set()

    # What several calls do.

    def current(self, reference: Reference, *statuses: Status) -> Task | None:
        """The task, if this is its present dispatch and its status one of these."""
        task = self.tasks[reference.task_id]
        return task if task.dispatch == reference.dispatch and task.status in statuses else None

    def seen_by(self, caller: Caller, task_id: UUID) -> Task | None:
        task = self.tasks.get(task_id)
        return task if task and task.asked.tenant == caller.tenant else None

    def send(self, task: Task, route: str = "", hold_seconds: float = 0.0) -> None:
        route = route or work_route(task.asked.priority)
        self.unnumbered.append(Row(task.reference, task.asked.priority, route, self.now + hold_seconds))

    def stands_for(self, task: Task) -> bool:
        """Whether a row will still be sent for the present dispatch."""
        rows = [*self.rows.values(), *self.unnumbered]
        return any(row.reference == task.reference and not row.failed for row in rows)

    def end(
        self,
        task: Task,
        status: Status,
        failure: Failure | None = None,
        *,
        result: str | None = None,
        again: Again = AT_ONCE,
    ) -> Status:
        """End a run, or a wait, under the present dispatch; what is PENDING then is dispatched again."""
        status = _unless_cancelled(status, cancel_requested=task.cancel_requested)
        if failure:
            task.errors = (*task.errors, Noted(task.dispatch, task.attempt, failure))[-ERRORS_KEPT:]
        task.ends[task.dispatch] = End(status, failure, result, task.cancel_requested)
        task.status, task.result, task.worker_id, task.queued_at = status, result, None, None
        if status is PENDING:
            task.dispatch += 1
            task.due_at = self.now + again.due_seconds
            self.send(task, again.route, again.hold_seconds)
        if status is FAILED and failure:
            task.reason = failure.reason
            counts = (task.attempt, task.losses, task.replay)
            self.letters[task.reference] = Letter(failure.reason, *counts, task.errors)
            self.send(task, DLQ)
        return status

    def begin_anew(self, task: Task) -> Task:
        """Replay: another task in all but its id, under the next dispatch."""
        anew = Task(task.asked, dispatch=task.dispatch + 1, replay=task.replay + 1, replayed=task.dispatch)
        self.tasks[task.asked.id] = anew
        return anew

    # Clients.

    def submit(self, asked: Submission) -> Accepted | KeyReused:
        first = self.keys.setdefault(asked.key, asked) if asked.key else asked
        if first.id != asked.id:
            same = first.fingerprint == asked.fingerprint
            return Accepted(first.id, replayed=True) if same else KeyReused(first.id)
        if asked.id not in self.tasks:
            due_at = self.now + asked.delay_seconds if asked.delay_seconds else None
            task = self.tasks[asked.id] = Task(asked, due_at)
            self.send(task, hold_seconds=asked.delay_seconds)
        return Accepted(asked.id)

    def cancel(self, caller: Caller, task_id: UUID) -> Task | None:
        task = self.seen_by(caller, task_id)
        if task and not task.status.terminal:
            task.cancel_requested = True
            if task.status in WAITING:
                task.status, task.queued_at = CANCELLED, None
        return task

    def replay(self, caller: Caller, task_id: UUID, dispatch: int) -> Task | None:
        task = self.seen_by(caller, task_id)
        if task and task.dispatch == dispatch and task.status in (FAILED, CANCELLED):
            for number, row in list(self.rows.items()):
                if row.failed and row.reference.task_id == task_id:
                    del self.rows[number]
            task = self.begin_anew(task)
            self.send(task)
        return task if task and task.replayed == dispatch else None

    # The relay.

    def due(self) -> set[int]:
        """The rows that a poll may lease; a paused queue lets nothing go but notices of dead tasks."""
        return {
            number
            for number, row in self.rows.items()
            if not row.failed
            and row.available_at <= self.now
            and (row.leased_until is None or row.leased_until < self.now)
            and (row.priority not in self.paused or row.route == DLQ)
        }

    def poll(self, chosen: Iterable[int], lease_seconds: float) -> None:
        for number in chosen:
            self.rows[number].leased_until = self.now + lease_seconds

    def renew(self, numbers: Iterable[int], lease_seconds: float) -> None:
        for row in self._leased(numbers):
            row.leased_until = self.now + lease_seconds

    def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
        held: dict[Reference, float] = {}
        for number, hold_seconds in confirmed:
            if row := self.rows.pop(number, None):
                held[row.reference] = max(hold_seconds, held.get(row.reference, 0.0))
        for reference, hold_seconds in held.items():
            if task := self.current(reference, *WAITING):
                task.status, task.queued_at = PENDING, self.now + hold_seconds

    def release_rows(self, numbers: Iterable[int], delay_seconds: float) -> None:
        for number in numbers:
            if (row := self.rows.get(number)) and not row.failed:
                row.leased_until, row.available_at = None, self.now + delay_seconds

    def returned(self, numbers: Iterable[int], error: str, most: int, delay_seconds: float) -> int:
        """How many rows were given up."""
        leased = self._leased(numbers)
        for row in leased:
            row.attempts, row.leased_until = row.attempts + 1, None
            row.available_at, row.failed = self.now + delay_seconds, row.attempts >= most
            if row.failed and (task := self.current(row.reference, *WAITING)):
                self.end(task, FAILED, Failure("Undeliverable", error, Reason.UNDELIVERABLE))
        return sum(row.failed for row in leased)

    def _leased(self, numbers: Iterable[int]) -> list[Row]:
        """Those that have been leased and not given back since; the lease may have run out."""
        rows = [self.rows[number] for number in numbers if number in self.rows]
        return [row for row in rows if row.leased_until is not None]

    def retry(self, caller: Caller, number: int) -> bool:
        row = self.rows.get(number)
        if row is None or not row.failed or not self.seen_by(caller, row.reference.task_id):
            return False
        row.failed, row.attempts, row.leased_until, row.available_at = False, 0, None, self.now
        task = self.current(row.reference, FAILED)
        if task and task.reason is Reason.UNDELIVERABLE:
            row.reference, row.route = self.begin_anew(task).reference, work_route(row.priority)
        return True

    def early_seconds(self, task: Task) -> float:
        """How long it is until the task is due; not above 0 once it is."""
        return (task.due_at or 0.0) - self.now

    # Workers.

    def claim(self, references: Iterable[Reference], worker_id: UUID, kinds: Sequence[str]) -> list[Task]:
        taken = []
        for reference in references:
            if task := self.current(reference, *WAITING):
                if task.asked.priority in self.paused:
                    self.send(task, hold_seconds=NOT_NOW_SECONDS)
                elif (early_seconds := self.early_seconds(task)) > 0:
                    self.send(task, hold_seconds=early_seconds)
                elif worker_id in self.dead:
                    self.send(task, hold_seconds=NOT_NOW_SECONDS)
                elif task.asked.kind not in kinds:
                    self.send(task, hold_seconds=UNKNOWN_KIND_SECONDS)
                else:
                    task.status, task.worker_id = IN_PROGRESS, worker_id
            if (task := self.current(reference, IN_PROGRESS)) and task.worker_id == worker_id:
                task.started_at = self.now
                taken.append(task)
        return taken

    def record(self, verdicts: Sequence[Verdict]) -> list[set[Status | None]]:
        """What each may be answered."""
        for verdict in verdicts:
            if task := self.current(verdict.run.reference, IN_PROGRESS):
                self._record(task, verdict)
                task.ends[verdict.run.dispatch].verdict = verdict
        return [self._recorded(verdict) for verdict in verdicts]

    def _record(self, task: Task, verdict: Verdict) -> None:
        match verdict:
            case Done(result=result):
                self.end(task, COMPLETED, result=result)
            case Dead(failure=failure):
                self.end(task, FAILED, failure)
            case Cancelled():
                self.end(task, CANCELLED)
            case Interrupted():
                self.end(task, PENDING)
            case Retry(failure=failure, route=route, delay_seconds=due_seconds):
                hold_seconds = due_seconds if verdict.waits_in_outbox else 0.0
                self.end(task, PENDING, failure, again=Again(route, due_seconds, hold_seconds))
                task.attempt += verdict.burns_attempt
                task.postponements += not verdict.burns_attempt

    def _recorded(self, verdict: Verdict) -> set[Status | None]:
        """To the verdict that was recorded as then; to another None, or what it would have led to as well."""
        task = self.tasks[verdict.run.task_id]
        end = task.ends.get(verdict.run.dispatch) if task.replay == verdict.run.replay else None
        if end and end.verdict == verdict:
            return {end.status}
        return {None, end.status} if end and end == _end_of(verdict, end) else {None}

    def hand_back(self, references: Iterable[Reference], delay_seconds: float) -> None:
        for reference in references:
            if task := self.current(reference, *WAITING):
                self.send(task, hold_seconds=delay_seconds)

    def release_runs(self, references: Iterable[Reference], worker_id: UUID) -> None:
        for reference in references:
            if (task := self.current(reference, IN_PROGRESS)) and task.worker_id == worker_id:
                self.end(task, PENDING)

    def beat(self, worker_id: UUID) -> bool:
        if worker_id not in self.dead:
            self.workers[worker_id] = self.now
        return worker_id not in self.dead

    def close(self, worker_id: UUID) -> None:
        self.workers.pop(worker_id, None)
        self.dead.discard(worker_id)

    # The janitor.

    def declare_dead(self, lease_seconds: float) -> set[UUID]:
        silent = {worker for worker, seen in self.workers.items() if seen < self.now - lease_seconds}
        silent -= self.dead
        self.dead |= silent
        return silent

    def lost(self, task: Task) -> bool:
        return task.status is IN_PROGRESS and task.worker_id not in self.workers.keys() - self.dead

    def hung(self, task: Task, lease_seconds: float) -> bool:
        allowed_seconds = task.asked.timeout_seconds + 2 * lease_seconds
        return task.status is IN_PROGRESS and (task.started_at or 0.0) < self.now - allowed_seconds

    def to_rescue(self, lease_seconds: float) -> set[Reference]:
        tasks = self.tasks.values()
        return {task.reference for task in tasks if self.lost(task) or self.hung(task, lease_seconds)}

    def rescue(self, chosen: Iterable[Reference]) -> dict[Reference, Status]:
        return {reference: self._rescue(self.tasks[reference.task_id]) for reference in chosen}

    def _rescue(self, task: Task) -> Status:
        if self.lost(task):
            task.losses += 1
            if task.losses < MOST_LOSSES:
                return self.end(task, PENDING, WORKER_LOST)
            return self.end(task, FAILED, WORKER_LOST if task.cancel_requested else KILLS_WORKER)
        if task.attempt > task.asked.max_retries:
            return self.end(task, FAILED, HUNG)
        status = self.end(task, PENDING, HUNG)
        task.attempt += 1
        return status

    def resend(self, priority: Priority, min_age_seconds: float) -> int:
        lost = [
            task
            for task in self.tasks.values()
            if task.status is PENDING
            and task.asked.priority is priority
            and task.queued_at is not None
            and task.queued_at < self.now - min_age_seconds
            and not self.stands_for(task)
        ]
        for task in lost:
            self.send(task, hold_seconds=max(0.0, self.early_seconds(task)))
        return len(lost)

    def bury(self, references: Iterable[Reference]) -> int:
        """How many were sent again; a FAILED task has its letter already."""
        waiting = [task for reference in references if (task := self.current(reference, *WAITING))]
        for task in waiting:
            self.send(task)
        return len(waiting)

    def restart_volatile(self) -> int:
        """The broker forgot all it held, and every worker is gone."""
        self.dead |= set(self.workers)
        for row in self.rows.values():
            row.leased_until = None
        pending = [task for task in self.tasks.values() if task.status is PENDING]
        forgotten = [task for task in pending if not self.stands_for(task)]
        for task in forgotten:
            self.send(task, hold_seconds=max(0.0, self.early_seconds(task)))
        return len(forgotten) + len(self.rescue(self.to_rescue(0.0)))


def _unless_cancelled(status: Status, *, cancel_requested: bool) -> Status:
    """A cancel that was asked goes before every end but COMPLETED."""
    return CANCELLED if cancel_requested and status is not COMPLETED else status


_STATUS = {Done: COMPLETED, Retry: PENDING, Dead: FAILED, Cancelled: CANCELLED, Interrupted: PENDING}


def _end_of(verdict: Verdict, end: End) -> End:
    """How this verdict would have ended the run."""
    status = _unless_cancelled(_STATUS[type(verdict)], cancel_requested=end.cancel_requested)
    failure = verdict.failure if isinstance(verdict, (Retry, Dead)) else None
    return End(status, failure, verdict.result if isinstance(verdict, Done) else None, end.cancel_requested)
