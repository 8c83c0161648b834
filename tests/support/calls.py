"""Every call of the ledger's ports as it is made to a ledger and as it is told to the plain model.

What both answer is put into the words of the model, so that it can be compared.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from pipeline.broker.topology import parse
from storage.model import Caller, Failure, Reference, Run, Status
from tests.support import builders
from tests.support.plain_model import Noted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from uuid import UUID

    from pipeline.ports import Ledger
    from storage.model import ErrorEntry, OutboxRow, Priority, Submission, Task, Verdict
    from tests.support import plain_model
    from tests.support.plain_model import PlainModel

KINDS = ("echo", "sleep")
OWNER, STRANGER = Caller(), Caller("stranger")


class Call(NamedTuple):
    """`expect` is given the ledger's answer; `moving` names the dispatches that the call may move."""

    name: str
    ask: Callable[[], Awaitable[Any]]
    expect: Callable[[PlainModel, Any], Any]
    moving: Callable[[PlainModel], Collection[Reference]] = lambda _: ()


class Calls:
    def __init__(self, ledger: Ledger, lease_seconds: float) -> None:
        self._ledger = ledger
        self._lease_seconds = lease_seconds

    def submit(self, submission: Submission) -> Call:
        async def ask() -> Any:
            [answer] = await self._ledger.submissions.submit([submission])
            return replace(answer, created_at=None) if hasattr(answer, "created_at") else answer

        return Call("submit", ask, lambda model, _: model.submit(submission))

    def cancel(self, caller: Caller, task_id: UUID) -> Call:
        async def ask() -> Any:
            return whole(await self._ledger.tasks.cancel(caller, task_id))

        return Call(
            "cancel",
            ask,
            lambda model, _: expected_whole(model.cancel(caller, task_id)),
            lambda model: [model.tasks[task_id].reference],
        )

    def replay(self, caller: Caller, reference: Reference) -> Call:
        async def ask() -> Any:
            return whole(await self._ledger.tasks.replay(caller, *reference, "again"))

        return Call(
            "replay",
            ask,
            lambda model, _: expected_whole(model.replay(caller, *reference)),
            lambda _: [reference],
        )

    def poll(self, most: int) -> Call:
        async def ask() -> list[OutboxRow]:
            return sorted(await self._ledger.outbox.poll(most, self._lease_seconds), key=lambda row: row.id)

        def expect(model: PlainModel, rows: list[OutboxRow]) -> list[OutboxRow]:
            due, leased = model.due(), {row.id for row in rows}
            assert leased <= due
            assert len(rows) == len(leased) == min(most, len(due))
            model.poll(leased, self._lease_seconds)
            return rows

        return Call("poll", ask, expect)

    def settle(self, rows: Sequence[OutboxRow]) -> Call:
        confirmed = [(row.id, float(parse(row.route).hold_seconds)) for row in rows]
        ask = partial(self._ledger.outbox.settle, confirmed)
        return Call("settle", ask, lambda model, _: model.settle(confirmed), partial(_named, rows))

    def renew(self, rows: Sequence[OutboxRow]) -> Call:
        numbers = [row.id for row in rows]
        ask = partial(self._ledger.outbox.renew, numbers, self._lease_seconds)
        return Call("renew", ask, lambda model, _: model.renew(numbers, self._lease_seconds))

    def release_rows(self, rows: Sequence[OutboxRow], delay_seconds: float) -> Call:
        numbers = [row.id for row in rows]
        ask = partial(self._ledger.outbox.release, numbers, delay_seconds)
        return Call("release_rows", ask, lambda model, _: model.release_rows(numbers, delay_seconds))

    def returned(self, rows: Sequence[OutboxRow], most: int, delay_seconds: float) -> Call:
        numbers = [row.id for row in rows]

        async def ask() -> int:
            return len(await self._ledger.outbox.returned(numbers, "no queue", most, delay_seconds))

        def expect(model: PlainModel, _: Any) -> int:
            return model.returned(numbers, "no queue", most, delay_seconds)

        return Call("returned", ask, expect, partial(_named, rows))

    def retry(self, caller: Caller, row: OutboxRow) -> Call:
        async def ask() -> bool:
            return await self._ledger.outbox.retry(caller, row.id) is not None

        return Call("retry", ask, lambda model, _: model.retry(caller, row.id), partial(_named, [row]))

    def claim(self, references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str] = KINDS) -> Call:
        async def ask() -> list[Run]:
            runs = await self._ledger.runs.claim(references, worker_id, kinds)
            runs = [replace(run, queued_at=None, waited_seconds=0.0) for run in runs]
            return sorted(runs, key=lambda run: run.reference)

        def expect(model: PlainModel, _: Any) -> list[Run]:
            runs = map(expected_run, model.claim(references, worker_id, kinds))
            return sorted(runs, key=lambda run: run.reference)

        return Call("claim", ask, expect, lambda _: references)

    def record(self, verdicts: Sequence[Verdict]) -> Call:
        async def ask() -> list[Status | None]:
            return [recorded.status for recorded in await self._ledger.runs.record(verdicts)]

        def expect(model: PlainModel, answers: list[Status | None]) -> list[Status | None]:
            for answer, among in zip(answers, model.record(verdicts), strict=True):
                assert answer in among
            return answers

        return Call("record", ask, expect, lambda _: [verdict.run.reference for verdict in verdicts])

    def hand_back(self, references: Sequence[Reference], delay_seconds: float) -> Call:
        ask = partial(self._ledger.runs.hand_back, references, delay_seconds)
        return Call("hand_back", ask, lambda model, _: model.hand_back(references, delay_seconds))

    def release_runs(self, references: Sequence[Reference], worker_id: UUID) -> Call:
        ask = partial(self._ledger.runs.release, references, worker_id)
        return Call(
            "release_runs",
            ask,
            lambda model, _: model.release_runs(references, worker_id),
            lambda _: references,
        )

    def held_by(self, worker_id: UUID) -> Call:
        async def ask() -> set[tuple[Reference, bool]]:
            return set(await self._ledger.workers.held_by(worker_id))

        def expect(model: PlainModel, _: Any) -> set[tuple[Reference, bool]]:
            held = [task for task in model.tasks.values() if task.worker_id == worker_id]
            return {(task.reference, task.cancel_requested) for task in held}

        return Call("held_by", ask, expect)

    def beat(self, worker_id: UUID) -> Call:
        ask = partial(self._ledger.workers.beat, builders.beat(worker_id))
        return Call("beat", ask, lambda model, _: model.beat(worker_id))

    def close(self, worker_id: UUID) -> Call:
        ask = partial(self._ledger.workers.close, worker_id)
        return Call("close", ask, lambda model, _: model.close(worker_id))

    def declare_dead(self) -> Call:
        async def ask() -> set[UUID]:
            return set(await self._ledger.workers.declare_dead(self._lease_seconds))

        return Call("declare_dead", ask, lambda model, _: model.declare_dead(self._lease_seconds))

    def rescue(self, most: int) -> Call:
        async def ask() -> dict[Reference, Status]:
            return dict(await self._ledger.upkeep.rescue(most, self._lease_seconds))

        def expect(model: PlainModel, rescued: dict[Reference, Status]) -> dict[Reference, Status]:
            lost = model.to_rescue(self._lease_seconds)
            assert rescued.keys() <= lost
            assert len(rescued) == min(most, len(lost))
            return model.rescue(rescued)

        return Call("rescue", ask, expect, lambda model: model.to_rescue(self._lease_seconds))

    def resend(self, priority: Priority, min_age_seconds: float) -> Call:
        ask = partial(self._ledger.upkeep.resend, priority, None, 1000, min_age_seconds)
        return Call("resend", ask, lambda model, _: model.resend(priority, min_age_seconds))

    def bury(self, references: Sequence[Reference]) -> Call:
        ask = partial(self._ledger.dead_letters.bury, references)
        return Call("bury", ask, lambda model, _: model.bury(references))

    def restart_volatile(self) -> Call:
        return Call(
            "restart_volatile",
            self._ledger.upkeep.restart_volatile,
            lambda model, _: model.restart_volatile(),
            lambda model: [
                task.reference for task in model.tasks.values() if task.status is Status.IN_PROGRESS
            ],
        )


def _named(rows: Sequence[OutboxRow], model: PlainModel) -> list[Reference]:
    """What the rows stand for at present: that of a retried one is another than when it was polled."""
    return [model.rows[row.id].reference for row in rows if row.id in model.rows]


def shown(task: Task) -> tuple[object, ...]:
    """All of a task that changes, but the moments."""
    counts = (task.dispatch, task.attempt, task.losses, task.replay)
    return (task.status, *counts, task.cancel_requested, task.reason, noted(task.errors))


def expected(task: plain_model.Task) -> tuple[object, ...]:
    counts = (task.dispatch, task.attempt, task.losses, task.replay)
    return (task.status, *counts, task.cancel_requested, task.reason, task.errors)


def whole(task: Task | None) -> tuple[object, ...] | None:
    return (*shown(task), task.result) if task else None


def expected_whole(task: plain_model.Task | None) -> tuple[object, ...] | None:
    return (*expected(task), task.result.encode() if task.result else None) if task else None


def expected_run(task: plain_model.Task) -> Run:
    asked = task.asked
    return builders.run(
        task_id=asked.id,
        kind=asked.kind,
        priority=asked.priority,
        max_retries=asked.max_retries,
        timeout_seconds=asked.timeout_seconds,
        dispatch=task.dispatch,
        attempt=task.attempt,
        losses=task.losses,
        postponements=task.postponements,
        replay=task.replay,
    )


def noted(errors: Iterable[ErrorEntry]) -> tuple[Noted, ...]:
    return tuple(
        Noted(error.dispatch, error.attempt, Failure(error.type, error.message, error.reason))  # type: ignore[arg-type]
        for error in errors
    )
