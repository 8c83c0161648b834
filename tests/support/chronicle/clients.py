"""What clients do in a history made by hand."""

from __future__ import annotations

from typing import Any

from storage.model import Status
from tests.chaos.harness.events import CancelAsked, Outcome, ReplayAsked, Seen, Submitted
from tests.support.chronicle.pen import CANCELLED, IN_PROGRESS, NEW, Pen


class Clients(Pen):
    """Writes down what clients ask and are answered."""

    def post(
        self,
        *names: str,
        key: str | None = None,
        outcome: Outcome = "ok",
        expected: str = "COMPLETED",
        delay_seconds: float | None = None,
    ) -> str:
        """Post tasks, which are written unless refused; the id of the first."""
        began = self.now
        ids = [f"id-of-{name}" for name in names]
        if outcome != "refused":
            for name, task in zip(names, ids, strict=True):
                self.create(task, name, delay_seconds)
            if key:
                self.keys.setdefault(key, ids)
        self.answer_post(*names, began=began, key=key, outcome=outcome, expected=expected)
        return ids[0]

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
                began=self.now - self.pace_seconds if began is None else began,
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
