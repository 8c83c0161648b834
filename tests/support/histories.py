"""Histories of a chaos run made by hand: correct ones, unless a test bends what is in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from storage.model import Status
from tests.chaos.harness.events import (
    Beaten,
    Booted,
    CancelAsked,
    Claimed,
    DeclaredDead,
    Delivered,
    Exited,
    FaultBegan,
    FaultEnded,
    Letting,
    LoadEnded,
    Outcome,
    Polled,
    Published,
    Recorded,
    ReplayAsked,
    RunEnded,
    Seen,
    Settling,
    Started,
    Submitted,
)
from tests.chaos.harness.history import Effect, Final, FinalTask, History, OutboxChange, TaskChange

if TYPE_CHECKING:
    from tests.chaos.harness.events import AnyEvent

NEW, PENDING, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = Status

PIDS = {"relay-1.1": 11, "worker-1.1": 21, "worker-2.1": 22, "janitor.1": 31, "gateway.1": 41}
WORKERS = {"worker-1.1": "w-1", "worker-2.1": "w-2"}
MAX_RETRIES = 3
STEP_SECONDS = 0.2
"""Longer than the clocks may differ, short enough that no history is thought to be stuck."""

S = TypeVar("S", bound=msgspec.Struct)


class Chronicle:
    """A run that is being written down; every step takes STEP_SECONDS, unless it is told otherwise.

    `events`, `changes`, `rows`, `effects` and `left` (the fields of Final) may be bent before `history()`.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[AnyEvent] = []
        self.changes: list[TaskChange] = []
        self.rows: list[OutboxChange] = []
        self.effects: list[Effect] = []
        self.left: dict[str, Any] = {}
        self.results: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.letters: list[tuple[str | None, int | None, str]] = []
        self.keys: dict[str, list[str]] = {}
        self._deliveries = 0
        self._ended = False
        for by, pid in PIDS.items():
            program = by.partition(".")[0]
            self.events += [
                Started(at=self.now, by="harness", program=program, pid=pid),
                Booted(at=self.now, by=by, pid=pid, wall_ahead_seconds=0.0),
            ]
        for by in WORKERS:
            self.beat(by)

    # What is written down.

    def tick(self, seconds: float = STEP_SECONDS) -> float:
        self.now += seconds
        return self.now

    def task(self, task: str) -> TaskChange:
        """The last change of a task."""
        return next(change for change in reversed(self.changes) if change.task == task)

    def move(self, task: str, **fields: Any) -> TaskChange:
        """Change a row of tasks by an UPDATE; what is not named stays as it was."""
        before = self.task(task)
        at = self.tick()
        if before.due_seconds is not None:
            fields.setdefault("due_seconds", before.due_seconds + before.at - at)
        changed = msgspec.structs.replace(
            before,
            number=len(self.changes) + 1,
            at=at,
            old_status=before.status,
            old_dispatch=before.dispatch,
            **fields,
        )
        self.changes.append(changed)
        return changed

    def row(self, task: str, route: str = "tasks.medium", operation: str = "INSERT", **fields: Any) -> int:
        """Change a row of the outbox; an INSERT makes a new one for the dispatch of the task."""
        inserted = [change.row for change in self.rows if change.operation == "INSERT"]
        given: dict[str, Any] = {
            "row": len(inserted) + 1,
            "dispatch": self.task(task).dispatch,
            "status": 0,
            "attempts": 0,
        } | fields
        self.rows.append(
            OutboxChange(
                number=len(self.rows) + 1,
                at=self.now,
                operation=operation,
                task=task,
                route=route,
                due_seconds=0.0,
                **given,
            )
        )
        return int(given["row"])

    def effect(self, what: str, task: str, dispatch: int | None = None, **fields: Any) -> None:
        change = self.task(task)
        given: dict[str, Any] = {
            "attempt": change.attempt,
            "idempotency_key": f"{task}-{change.replay}",
            "at": self.tick(),
            "pid": PIDS["worker-1.1"],
        } | fields
        self.effects.append(Effect(what=what, task=task, dispatch=dispatch or change.dispatch, **given))

    # What clients do.

    def post(
        self, *names: str, key: str | None = None, outcome: Outcome = "ok", expected: str = "COMPLETED"
    ) -> str:
        """Post tasks, which are written unless refused; the id of the first."""
        began = self.now
        ids = [f"id-of-{name}" for name in names]
        if outcome != "refused":
            for name, task in zip(names, ids, strict=True):
                self.create(task, name)
            if key:
                self.keys.setdefault(key, ids)
        self.answer_post(*names, began=began, key=key, outcome=outcome, expected=expected)
        return ids[0]

    def create(self, task: str, name: str) -> None:
        self.names[task], self.kinds[task] = name, "chaos.ok"
        self.changes.append(
            TaskChange(
                number=len(self.changes) + 1,
                at=self.tick(),
                task=task,
                old_status=None,
                status=NEW,
                old_dispatch=None,
                dispatch=1,
                attempt=1,
                losses=0,
                postponements=0,
                replay=0,
                worker=None,
                cancel_requested=False,
                reason=None,
                due_seconds=None,
            )
        )
        self.row(task)

    def answer_post(
        self,
        *names: str,
        began: float | None = None,
        key: str | None = None,
        outcome: Outcome = "ok",
        expected: str = "COMPLETED",
        **fields: Any,
    ) -> None:
        given: dict[str, Any] = {
            "ids": [f"id-of-{name}" for name in names] if outcome == "ok" else [],
            "status": {"ok": 201, "refused": 422, "unknown": 0}[outcome],
        } | fields
        self.events.append(
            Submitted(
                at=self.tick(),
                by="client",
                began=self.now - STEP_SECONDS if began is None else began,
                names=list(names),
                kinds=["chaos.ok"] * len(names),
                expected=[expected] * len(names),
                key=key,
                outcome=outcome,
                **given,
            )
        )

    def cancel(self, task: str) -> None:
        """Cancel a task that waits, or ask a running one to stop."""
        began = self.now
        running = self.task(task).status == IN_PROGRESS
        self.move(task, status=IN_PROGRESS if running else CANCELLED, cancel_requested=True)
        self.answer_cancel(task, began=began)

    def answer_cancel(self, task: str, *, began: float | None = None, **fields: Any) -> None:
        status = Status(self.task(task).status)
        given: dict[str, Any] = {
            "outcome": "ok",
            "status": 200 if status is CANCELLED else 202,
            "task_status": status.name,
        } | fields
        began = self.now if began is None else began
        self.events.append(CancelAsked(at=self.tick(), by="client", began=began, task=task, **given))

    def replay(self, task: str) -> None:
        """Begin a task anew that ended badly."""
        began, before = self.now, self.task(task)
        self.begin_anew(task)
        self.events.append(
            ReplayAsked(
                at=self.tick(),
                by="client",
                began=began,
                task=task,
                dispatch=before.dispatch,
                outcome="ok",
                status=200,
            )
        )

    def begin_anew(self, task: str, **fields: Any) -> None:
        before = self.task(task)
        given: dict[str, Any] = {
            "status": NEW,
            "dispatch": before.dispatch + 1,
            "replay": before.replay + 1,
            "attempt": 1,
            "losses": 0,
            "postponements": 0,
            "cancel_requested": False,
            "reason": None,
            "due_seconds": None,
        } | fields
        self.move(task, **given)
        self.row(task)

    def see(self, task: str, **fields: Any) -> None:
        change = self.task(task)
        given: dict[str, Any] = {
            "task_status": Status(change.status).name,
            "dispatch": change.dispatch,
            "replay": change.replay,
            "began": self.tick(),
        } | fields
        self.events.append(Seen(at=self.tick(), by="client", task=task, **given))

    # What programs do.

    def relay(self, task: str, publication: str = "CONFIRMED", row: int | None = None) -> None:
        """Carry the row of a task to the broker, settle it and mark the task."""
        leased = self.poll(task, row)
        self.publish(task, publication, self._route(leased))
        self.settle(task, leased)

    def poll(self, task: str, row: int | None = None) -> int:
        """Lease the newest row of a task."""
        found = next(
            change for change in reversed(self.rows) if change.task == task and row in (None, change.row)
        )
        leased = (found.row, task, found.dispatch, found.route)
        self.events.append(Polled(at=self.tick(), by="relay-1.1", rows=[leased]))
        return found.row

    def publish(self, task: str, publication: str, route: str = "tasks.medium") -> None:
        message = (route, [(task, self.task(task).dispatch)], publication)
        self.events.append(
            Published(at=self.tick(), by="relay-1.1", began=self.now - STEP_SECONDS / 2, messages=[message])
        )

    def settle(self, task: str, row: int) -> None:
        self.events.append(Settling(at=self.tick(), by="relay-1.1", rows=[row]))
        self.delete(task, row)
        if self.task(task).status in (NEW, PENDING):
            self.move(task, status=PENDING)

    def delete(self, task: str, row: int) -> None:
        self.tick()
        self.row(task, self._route(row), "DELETE", row=row)

    def deliver(self, task: str, by: str = "worker-1.1", queue: str = "tasks.medium") -> int:
        """Bring a message with the current reference; the number of the delivery."""
        self._deliveries += 1
        self.events.append(
            Delivered(
                at=self.tick(),
                by=by,
                delivery=self._deliveries,
                queue=queue,
                references=[(task, self.task(task).dispatch)],
            )
        )
        return self._deliveries

    def let(self, delivery: int, by: str = "worker-1.1") -> None:
        self.events.append(Letting(at=self.tick(), by=by, delivery=delivery, how="ack"))

    def claim(self, task: str, by: str = "worker-1.1") -> None:
        """Take what a task waits with."""
        began = self.now
        self.move(task, status=IN_PROGRESS, worker=WORKERS[by])
        self.answer_claim(task, by, began=began)

    def answer_claim(
        self, task: str, by: str = "worker-1.1", *, began: float | None = None, taken: bool = True
    ) -> None:
        reference = (task, self.task(task).dispatch)
        self.events.append(
            Claimed(
                at=self.tick(),
                by=by,
                began=self.now - STEP_SECONDS if began is None else began,
                worker=WORKERS[by],
                asked=[reference],
                taken=[reference] if taken else [],
            )
        )

    def take(self, task: str, by: str = "worker-1.1") -> None:
        """Bring a message, claim what it names, let it go, and start the handler."""
        delivery = self.deliver(task, by)
        self.claim(task, by)
        self.let(delivery, by)
        self.effect("start", task, pid=PIDS[by])

    def complete(self, task: str) -> None:
        """Let the handler come to its end, and record that it is done."""
        self.effect("end", task)
        self.results[task] = json.dumps({"task": task, "dispatch": self.task(task).dispatch})
        self.record(task, "Done", status=COMPLETED)

    def record(self, task: str, verdict: str, **fields: Any) -> None:
        """End the run of a task as its verdict says."""
        began, before = self.now, self.task(task)
        moved = self.move(task, worker=None, **fields)
        if moved.status == FAILED:
            self.row(task, "tasks.dlq")
            self.letters.append((task, before.dispatch, str(moved.reason)))
        if moved.status == PENDING:
            self.row(task)
        self.answer_record(task, before.dispatch, verdict, moved.status, began=began)

    def answer_record(
        self, task: str, dispatch: int, verdict: str, status: int | None, *, began: float | None = None
    ) -> None:
        self.events.append(
            Recorded(
                at=self.tick(),
                by="worker-1.1",
                began=self.now - STEP_SECONDS if began is None else began,
                verdicts=[(task, dispatch, self.task(task).replay, verdict, status)],
            )
        )

    def retry(self, task: str, delay_seconds: float = 0.0) -> None:
        """Record a failure that is to be repeated."""
        before = self.task(task)
        self.record(
            task,
            "Retry",
            status=PENDING,
            dispatch=before.dispatch + 1,
            attempt=before.attempt + 1,
            due_seconds=delay_seconds,
        )

    def fail(self, task: str, reason: str = "error") -> None:
        """Record a failure that is not repeated, and see to its notice."""
        self.record(task, "Dead", status=FAILED, reason=reason)
        self.relay(task)

    def lose(self, task: str, **fields: Any) -> None:
        """Declare the worker of a task dead and dispatch the task again."""
        before = self.task(task)
        self.declare_dead(before.worker or "w-1")
        given: dict[str, Any] = {
            "status": PENDING,
            "dispatch": before.dispatch + 1,
            "losses": before.losses + 1,
        } | fields
        self.move(task, worker=None, **given)
        self.row(task)

    def declare_dead(self, *workers: str) -> None:
        self.events.append(
            DeclaredDead(
                at=self.tick(), by="janitor.1", began=self.now - STEP_SECONDS / 2, workers=list(workers)
            )
        )

    def beat(self, by: str, *, alive: bool = True) -> None:
        self.events.append(
            Beaten(at=self.tick(), by=by, began=self.now - STEP_SECONDS / 2, worker=WORKERS[by], alive=alive)
        )

    # What the harness does.

    def fault(self, fault: str = "kill", target: str = "relay-1", *, seconds: float = STEP_SECONDS) -> None:
        number = sum(isinstance(event, FaultBegan) for event in self.events) + 1
        told: dict[str, Any] = {"by": "nemesis", "number": number, "fault": fault, "target": target}
        self.events.append(FaultBegan(at=self.tick(), **told))
        self.events.append(FaultEnded(at=self.tick(seconds), bit=True, proof="seen", in_flight=1, **told))

    def exit(self, by: str, code: int = 0, *, wanted: bool = True) -> None:
        program = by.partition(".")[0]
        self.events.append(
            Exited(at=self.tick(), by="harness", program=program, pid=PIDS[by], code=code, wanted=wanted)
        )

    def whole_life(self, name: str = "a", **post: Any) -> str:
        """One task from its POST to its end."""
        task = self.post(name, **post)
        self.relay(task)
        self.take(task)
        self.complete(task)
        return task

    def end(self) -> None:
        """End the run, and with it every process that still lives."""
        self._ended = True
        self.events.append(LoadEnded(at=self.tick(), by="harness"))
        self.events.append(RunEnded(at=self.tick(), by="harness", at_rest=True))
        gone = {event.pid for event in self.events if isinstance(event, Exited)}
        for by, pid in PIDS.items():
            if pid not in gone:
                self.exit(by)

    def history(self) -> History:
        """Put it together; what is left at the end follows from the changes."""
        if not self._ended:
            self.end()
        waiting = {change.row: change for change in self.rows if change.operation != "DELETE"}
        for change in self.rows:
            if change.operation == "DELETE":
                waiting.pop(change.row, None)
        final: dict[str, Any] = {
            "tasks": [] if "tasks" in self.left else [self._final(task) for task in self.names],
            "outbox": [(r.row, r.task, r.dispatch, r.route, r.status) for r in waiting.values()],
            "dead_letters": self.letters,
            "keys": list(self.keys.items()),
            "payloads_without_task": 0,
            "idle_in_transaction": 0,
            "queues": {"tasks.medium": (0, 0)},
        } | self.left
        return History(
            seed=7,
            events=sorted(self.events, key=lambda event: event.at),
            tasks=self.changes,
            outbox=self.rows,
            effects=self.effects,
            final=Final(**final),
        )

    def _final(self, task: str) -> FinalTask:
        last = self.task(task)
        return FinalTask(
            id=task,
            name=self.names[task],
            kind=self.kinds[task],
            status=last.status,
            dispatch=last.dispatch,
            attempt=last.attempt,
            losses=last.losses,
            replay=last.replay,
            max_retries=MAX_RETRIES,
            cancel_requested=last.cancel_requested,
            worker=last.worker,
            reason=last.reason,
            errors=1 if last.status == FAILED else 0,
            result=self.results.get(task) if last.status == COMPLETED else None,
        )

    def _route(self, row: int) -> str:
        return next(change.route for change in self.rows if change.row == row)


def bend(structs: list[S], where: int, **fields: Any) -> None:
    """Change what one of many says."""
    structs[where] = msgspec.structs.replace(structs[where], **fields)
