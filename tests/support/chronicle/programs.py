"""What programs do in a history made by hand."""

from __future__ import annotations

import json
from typing import Any, Literal

from tests.chaos.harness.events import (
    Beaten,
    Claimed,
    DeclaredDead,
    Delivered,
    Letting,
    Polled,
    Published,
    Recorded,
    Settling,
)
from tests.support.chronicle.pen import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    NEW,
    PENDING,
    PIDS,
    WORKERS,
    Pen,
)


class Programs(Pen):
    """Writes down what relays, workers and janitors do."""

    _deliveries = 0

    def relay(self, task: str, publication: str = "CONFIRMED", row: int | None = None) -> None:
        """Carry the row of a task to the broker, settle it and mark the task."""
        leased = self.poll(task, row)
        self.publish(task, publication, self.route_of(leased))
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
            Published(
                at=self.tick(), by="relay-1.1", began=self.now - self.pace_seconds / 2, messages=[message]
            )
        )

    def settle(self, task: str, row: int) -> None:
        self.events.append(Settling(at=self.tick(), by="relay-1.1", rows=[row]))
        self.delete(task, row)
        if self.task(task).status in (NEW, PENDING):
            self.move(task, status=PENDING)

    def delete(self, task: str, row: int) -> None:
        self.tick()
        self.row(task, self.route_of(row), "DELETE", row=row)

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

    def let(
        self, delivery: int, by: str = "worker-1.1", how: Literal["ack", "nack", "reject"] = "ack"
    ) -> None:
        self.events.append(Letting(at=self.tick(), by=by, delivery=delivery, how=how))

    def claim(self, task: str, by: str = "worker-1.1", as_worker: str | None = None) -> None:
        """Take what a task waits with; a process has another worker's name after it was declared dead."""
        began = self.now
        self.move(task, status=IN_PROGRESS, worker=as_worker or WORKERS[by])
        self.answer_claim(task, by, began=began, as_worker=as_worker)

    def answer_claim(
        self,
        task: str,
        by: str = "worker-1.1",
        *,
        began: float | None = None,
        taken: bool = True,
        dispatch: int | None = None,
        as_worker: str | None = None,
    ) -> None:
        reference = (task, dispatch or self.task(task).dispatch)
        self.events.append(
            Claimed(
                at=self.tick(),
                by=by,
                began=self.now - self.pace_seconds if began is None else began,
                worker=as_worker or WORKERS[by],
                asked=[reference],
                taken=[reference] if taken else [],
            )
        )

    def take(self, task: str, by: str = "worker-1.1", as_worker: str | None = None) -> None:
        """Bring a message, claim what it names, let it go, and start the handler."""
        delivery = self.deliver(task, by)
        self.claim(task, by, as_worker)
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
                began=self.now - self.pace_seconds if began is None else began,
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
                at=self.tick(), by="janitor.1", began=self.now - self.pace_seconds / 2, workers=list(workers)
            )
        )

    def beat(self, by: str, *, alive: bool = True) -> None:
        self.events.append(
            Beaten(
                at=self.tick(), by=by, began=self.now - self.pace_seconds / 2, worker=WORKERS[by], alive=alive
            )
        )
