"""What the triggers and the handlers of a run leave, a line at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from storage.model import Status
from tests.chaos.harness.history import Effect, OutboxChange, TaskChange

if TYPE_CHECKING:
    from tests.chaos.harness.events import AnyEvent

NEW, PENDING, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = Status

PIDS = {"relay-1.1": 11, "worker-1.1": 21, "worker-2.1": 22, "janitor.1": 31, "gateway.1": 41}
WORKERS = {"worker-1.1": "w-1", "worker-2.1": "w-2"}
MAX_RETRIES = 3
STEP_SECONDS = 0.2
"""Longer than the clocks may differ, short enough that no history is thought to be stuck."""


class Pen:
    """Writes down what the database did and the handlers left; each step takes STEP_SECONDS."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pace_seconds = STEP_SECONDS
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

    def tick(self, seconds: float | None = None) -> float:
        self.now += self.pace_seconds if seconds is None else seconds
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

    def create(self, task: str, name: str, delay_seconds: float | None = None) -> None:
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
                due_seconds=delay_seconds,
            )
        )
        self.row(task)

    def route_of(self, row: int) -> str:
        return next(change.route for change in self.rows if change.row == row)
