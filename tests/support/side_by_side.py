"""A ledger and the plain model, called alike, and what must hold after every call."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from storage.errors import LockTimeout
from storage.model import OutboxStatus, Reference, Status, TaskFilter
from tests.support.calls import OWNER, Calls, expected, noted, shown
from tests.support.plain_model import PlainModel
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from storage.model import OutboxRow, Task
    from tests.support import plain_model
    from tests.support.backends import Backend
    from tests.support.calls import Call
    from tests.support.gate import Gate

    Seen = tuple[list[Task], list[OutboxRow]]

# The model's time moves in ticks, and no delay of a test is within DRIFT of a multiple of them: what is due
# on one side is due on the other, although real time passes while the test runs. What is held for less than
# that is waited for.
TICK_SECONDS = 10_000.0
SHORT_SECONDS = 3000.0
LONG_SECONDS = 13_000.0
DRIFT_SECONDS = 1000.0
PATIENCE_SECONDS = 60.0

# Who may move a task from one status to another, and by how much that raises its dispatch: nobody else may.
NEW, PENDING, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = Status
MOVES: dict[tuple[Status, Status, int], set[str]] = {
    (NEW, PENDING, 0): {"settle"},
    (NEW, IN_PROGRESS, 0): {"claim"},
    (PENDING, IN_PROGRESS, 0): {"claim"},
    (IN_PROGRESS, COMPLETED, 0): {"record"},
    (IN_PROGRESS, FAILED, 0): {"record", "rescue", "restart_volatile"},
    (IN_PROGRESS, CANCELLED, 0): {"record", "rescue", "restart_volatile", "release_runs"},
    (IN_PROGRESS, PENDING, 1): {"record", "rescue", "restart_volatile", "release_runs"},
    (NEW, CANCELLED, 0): {"cancel"},
    (PENDING, CANCELLED, 0): {"cancel"},
    (NEW, FAILED, 0): {"returned"},
    (PENDING, FAILED, 0): {"returned"},
    (FAILED, NEW, 1): {"replay", "retry"},
    (CANCELLED, NEW, 1): {"replay"},
}
# These tell what they have moved, and a repeat moves nothing; all others tell the same again.
TELL_WHAT_MOVED = {"poll", "returned", "retry", "rescue", "resend", "declare_dead", "restart_volatile"}


class SideBySide:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.model = PlainModel()
        self.calls = Calls(backend.ledger, SHORT_SECONDS)
        self._present: datetime
        self._seen: dict[UUID, Task] = {}
        self._confirmed: set[Reference] = set()
        self._letters_seen = 0

    async def begin(self) -> None:
        self._present = await self.backend.now()

    async def finish(self) -> None:
        """Compare what no call has shown."""
        for worker_id in {task.worker_id for task in self.model.tasks.values() if task.worker_id}:
            await self.make(self.calls.held_by(worker_id))
        await self._compare_letters()

    async def make(self, call: Call, times: int = 1) -> Any:
        """The ledger's answer, which is the model's too; to a repeat it means the same."""
        answer = await self._make(call)
        for _ in range(times - 1):
            before = repr(self.model.tasks)
            again = await self._make(call)
            if call.name not in TELL_WHAT_MOVED:
                assert again == answer
            elif again:
                assert not _told_twice(answer, again)
                continue
            assert repr(self.model.tasks) == before, f"{call.name} does not bear repetition"
        if any(0 < row.available_at - self.model.now < DRIFT_SECONDS for row in self.model.rows.values()):
            await self.pass_time(1)
        return answer

    async def _make(self, call: Call) -> Any:
        named = call.moving(self.model)
        answer = await call.ask()
        self._expect(call, answer)
        tasks, rows = await self._look()
        for task in tasks:
            self._check_move(call.name, task, named)
        self._compare(tasks, rows)
        if len(self.model.letters) != self._letters_seen:
            await self._compare_letters()
        return answer

    async def race(self, first: Call, second: Call, gate: Gate, gated: UUID) -> None:
        """Make the second call while the first waits at a task; they are answered as one after the other."""
        async with gate.closed(gated):
            one = asyncio.ensure_future(_insist(first))
            await eventually(partial(_end_or_wait, gate, one), PATIENCE_SECONDS)
            two = asyncio.ensure_future(_insist(second))
            await eventually(partial(_end_or_wait, gate, one, two), PATIENCE_SECONDS)
        answers = [(second, await two), (first, await one)]
        seen = await self._look()
        before = deepcopy(self.model)
        try:
            self._explain(answers, seen)
        except AssertionError as fault:
            self.model = before
            try:
                self._explain(answers[::-1], seen)
            except AssertionError as other:
                raise ExceptionGroup("neither order explains the answers", [fault, other]) from None

    def _explain(self, answers: Sequence[tuple[Call, Any]], seen: Seen) -> None:
        for call, answer in answers:
            self._expect(call, answer)
        self._compare(*seen)

    def _expect(self, call: Call, answer: Any) -> None:
        if call.name == "settle":
            self._confirmed.update(call.moving(self.model))
        wanted = call.expect(self.model, answer)
        assert answer == wanted, f"{call.name} gave {answer}, not {wanted}"

    async def pass_time(self, ticks: int) -> None:
        await self.backend.advance(ticks * TICK_SECONDS)
        self.model.now += ticks * TICK_SECONDS
        self._present = await self.backend.now()
        tasks, _ = await self._look()
        self._seen = {task.id: task for task in tasks}

    async def _look(self) -> Seen:
        ledger = self.backend.ledger
        page, rows = await asyncio.gather(
            ledger.tasks.find(OWNER, TaskFilter(limit=1000)),
            ledger.outbox.find(OWNER, status=None, before=None, limit=1000),
        )
        return page.tasks, rows

    def _check_move(self, name: str, task: Task, named: Collection[Reference]) -> None:
        before = self._seen.get(task.id)
        if before is None:
            assert (name, task.status, task.dispatch) == ("submit", NEW, 1)
        elif Reference(task.id, before.dispatch) not in named:
            assert task == before, f"{name} wrote to a task whose present dispatch it did not name"
        elif (before.status, before.dispatch) != (task.status, task.dispatch):
            move = before.status, task.status, task.dispatch - before.dispatch
            assert name in MOVES.get(move, ()), f"{name} moved {before} to {task}"

    def _compare(self, tasks: Sequence[Task], rows: Sequence[OutboxRow]) -> None:
        self._seen = {task.id: task for task in tasks}
        self._compare_tasks()
        self._compare_rows({row.id: row for row in rows})
        self._check_custody(rows)

    def _compare_tasks(self) -> None:
        assert self._seen.keys() == self.model.tasks.keys()
        for task_id, wanted in self.model.tasks.items():
            task = self._seen[task_id]
            assert shown(task) == expected(wanted)
            assert task.attempt <= task.max_retries + 1
            assert (task.finished_at is not None) == task.status.terminal
            assert self._near(task.started_at, wanted.started_at)
            if task.status in (NEW, PENDING):
                assert self._near(task.due_at, wanted.due_at)

    def _compare_rows(self, rows: dict[int, OutboxRow]) -> None:
        model = self.model
        for number in sorted(rows.keys() - model.rows.keys()):
            match = next((row for row in model.unnumbered if self._alike(rows[number], row)), None)
            assert match, f"nobody should have sent {rows[number]}"
            model.unnumbered.remove(match)
            model.rows[number] = match
        assert not model.unnumbered, "not sent"
        assert rows.keys() == model.rows.keys()
        for number, row in rows.items():
            assert self._alike(row, model.rows[number]), f"{row} is not {model.rows[number]}"

    def _alike(self, row: OutboxRow, wanted: plain_model.Row) -> bool:
        told = (row.reference, row.priority, row.route, row.attempts, row.status is OutboxStatus.FAILED)
        if told != (wanted.reference, wanted.priority, wanted.route, wanted.attempts, wanted.failed):
            return False
        return wanted.failed or self._near(row.available_at, wanted.available_at)

    async def _compare_letters(self) -> None:
        self._letters_seen = len(self.model.letters)
        letters = await self.backend.ledger.dead_letters.find(
            OWNER, task_id=None, kind=None, before=None, limit=1000
        )
        told = {
            (letter.task_id, letter.dispatch): (
                letter.reason,
                letter.attempt,
                letter.losses,
                letter.replay,
                noted(letter.errors),
            )
            for letter in letters
        }
        assert told == self.model.letters
        assert len(told) == len(letters)

    def _check_custody(self, rows: Sequence[OutboxRow]) -> None:
        """Nobody lets go of a waiting task: an outbox row holds it, or the broker that confirmed it."""
        waiting = {row.reference for row in rows if row.status is OutboxStatus.WAITING}
        for task in self._seen.values():
            reference = Reference(task.id, task.dispatch)
            assert task.status is not NEW or reference in waiting
            assert task.status is not PENDING or reference in waiting | self._confirmed

    def _near(self, moment: datetime | None, wanted: float | None) -> bool:
        if moment is None or wanted is None:
            return moment is None and wanted is None
        return abs((moment - self._present).total_seconds() - (wanted - self.model.now)) < DRIFT_SECONDS


def _told_twice(answer: Any, again: Any) -> bool:
    """Whether a repeat says of anything that it has moved once more."""
    return not isinstance(again, (list, dict, set)) or any(one in answer for one in again)


async def _insist(call: Call) -> Any:
    """On a busy machine the gate may stay closed for longer than a statement waits for a row."""
    while True:
        with suppress(LockTimeout):
            return await call.ask()


async def _end_or_wait(gate: Gate, *calls: asyncio.Future[Any]) -> bool:
    return await gate.waiting() == sum(not call.done() for call in calls)
