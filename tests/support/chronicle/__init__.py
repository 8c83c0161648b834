"""Histories of a chaos run made by hand: right ones, unless a test bends what is in them."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from tests.chaos.harness.events import Booted, Exited, FaultBegan, FaultEnded, LoadEnded, RunEnded, Started
from tests.chaos.harness.history import Final, FinalTask, History
from tests.support.chronicle.clients import Clients
from tests.support.chronicle.pen import COMPLETED, FAILED, MAX_RETRIES, PIDS, STEP_SECONDS, WORKERS
from tests.support.chronicle.programs import Programs

S = TypeVar("S", bound=msgspec.Struct)


class Chronicle(Clients, Programs):
    """A run that is being written down; two workers, a relay, a janitor and a gateway are there.

    `events`, `changes`, `rows`, `effects` and `left` (the fields of Final) may be bent before `history()`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended = False
        for by, pid in PIDS.items():
            program = by.partition(".")[0]
            self.events += [
                Started(at=self.now, by="harness", program=program, pid=pid),
                Booted(at=self.now, by=by, pid=pid, wall_ahead_seconds=0.0),
            ]
        for by in WORKERS:
            self.beat(by)

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


def bend(structs: list[S], where: int, **fields: Any) -> None:
    """Change what one of many says."""
    structs[where] = msgspec.structs.replace(structs[where], **fields)
