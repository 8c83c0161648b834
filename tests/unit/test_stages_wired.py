"""The stages as the roles wire them, on a ledger and a broker in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pipeline import roles, service
from pipeline.broker import Message
from pipeline.broker.topology import DLQ, work_route
from pipeline.clock import MonotonicClock
from pipeline.handlers import handler
from pipeline.handlers.registry import Handlers
from pipeline.monitoring import Metrics
from pipeline.references import encode
from pipeline.settings import Role, Settings
from pipeline.stages.poll_outbox import FEW_ROWS
from pipeline.supply import ENOUGH_MESSAGES
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import OutcomeUnknown, Unavailable
from storage.model import Caller, Priority, Status
from tests.support.builders import run, submission
from tests.support.stages import kept, watched
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from storage.model import Reference, Run

CALLER = Caller()
ROLES = frozenset({Role.RELAY, Role.WORKER, Role.DEAD_LETTER})
SETTINGS = Settings(role=ROLES, worker_concurrency=4, drain_seconds=0.2)


@handler("wired.echo")
async def echo(payload: Any) -> Any:
    return payload


@handler("wired.fail")
async def fail(_payload: Any) -> None:
    raise ValueError("as asked")


@handler("wired.wait")
async def wait(_payload: Any) -> None:
    await asyncio.Event().wait()


HANDLERS = Handlers([echo, fail, wait])


class Process:
    """The roles but the gateway, running."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger(ManualClock())
        self.broker = MemoryBroker()
        self.stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run until the block ends, then drain; within the grace, or it is a TimeoutError."""
        ports, before = roles.Ports(self.ledger, self.broker, Metrics()), asyncio.all_tasks()
        process = service.Process(SETTINGS, ports, HANDLERS, announce=print, stop=self.stop)
        async with self.broker:
            running = asyncio.create_task(process.run())
            yield
            self.stop.set()
            async with asyncio.timeout(3):
                await running
        await eventually(lambda: asyncio.all_tasks() == before)

    async def submit(self, kind: str, **fields: Any) -> UUID:
        task = submission(kind=kind, **fields)
        await self.ledger.submissions.submit([task])
        return task.id

    async def becomes(self, task_id: UUID, status: Status) -> None:
        async def has() -> bool:
            task = await self.ledger.tasks.get(CALLER, task_id)
            return task is not None and task.status is status

        await eventually(has, seconds=3)

    async def at_rest(self) -> bool:
        """Whether no row waits for the broker, no message for a consumer, and no delivery for its ack."""
        rows = await self.ledger.outbox.find(CALLER, status=None, before=None, limit=1)
        depths = [await self.broker.depth(queue) for queue in [*map(work_route, Priority), DLQ]]
        unsettled = [subscription.unsettled for subscription in self.broker._subscriptions]
        return not any([*rows, *unsettled, *(depth is not None and depth.ready for depth in depths)])

    async def workers(self) -> int:
        return (await self.ledger.outbox.capacity())[Priority.MEDIUM].workers


async def test_tasks_reach_their_outcome_and_nothing_is_left_behind() -> None:
    process = Process()
    async with process.running():
        done = [await process.submit("wired.echo", priority=priority) for priority in Priority]
        dead = await process.submit("wired.fail", max_retries=0)
        for task_id in done:
            await process.becomes(task_id, Status.COMPLETED)
        await process.becomes(dead, Status.FAILED)
        assert await process.workers() == 1
        await eventually(process.at_rest)
    async with process.broker:
        queues = [*map(work_route, Priority), DLQ]
        assert [await kept(process.broker, queue) for queue in queues] == [0, 0, 0, 0]
    assert await process.ledger.outbox.find(CALLER, status=None, before=None, limit=10) == []
    assert await process.workers() == 0


async def test_what_outlasts_the_grace_is_handed_out_again() -> None:
    process = Process()
    async with process.running():
        task_id = await process.submit("wired.wait")
        await process.becomes(task_id, Status.IN_PROGRESS)
    task = await process.ledger.tasks.get(CALLER, task_id)
    assert task is not None
    assert (task.status, task.dispatch, task.attempt, task.losses) == (Status.PENDING, 2, 1, 0)


async def test_a_worker_stops_in_time_although_the_database_is_away() -> None:
    process = Process()
    claimed: set[Reference] = set()

    async def claim(references: Sequence[Reference], _worker_id: UUID, _kinds: Sequence[str]) -> list[Run]:
        claimed.update(references)
        raise Unavailable("away")

    async def close(_worker_id: UUID) -> None:
        raise Unavailable("away")

    process.ledger.runs.claim = claim  # type: ignore[method-assign,assignment]  # the fault
    process.ledger.workers.close = close  # type: ignore[method-assign,assignment]  # the fault
    async with process.running():
        await process.submit("wired.echo")
        await eventually(lambda: len(claimed) == 1)
        await process.submit("wired.echo")
        await eventually(lambda: len(claimed) == 2)
    async with process.broker:
        assert await kept(process.broker, "tasks.medium") == 2


async def test_a_claim_whose_answer_never_came_is_handed_back_at_the_end_and_counts_no_loss() -> None:
    process = Process()
    original = process.ledger.runs.claim

    async def claim(references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str]) -> list[Run]:
        await original(references, worker_id, kinds)
        raise OutcomeUnknown("the reply was lost")

    process.ledger.runs.claim = claim  # type: ignore[method-assign]  # the fault
    async with process.running():
        task_id = await process.submit("wired.echo")
        await process.becomes(task_id, Status.IN_PROGRESS)
    task = await process.ledger.tasks.get(CALLER, task_id)
    assert task is not None
    assert (task.status, task.dispatch, task.attempt, task.losses) == (Status.PENDING, 2, 1, 0)
    assert await process.workers() == 0


async def test_a_worker_signs_off_without_a_database() -> None:
    process = Process()

    async def close(_worker_id: UUID) -> None:
        raise Unavailable("away")

    process.ledger.workers.close = close  # type: ignore[method-assign,assignment]  # the fault
    async with process.running():
        await process.becomes(await process.submit("wired.echo"), Status.COMPLETED)


async def test_a_relay_does_not_hurry_while_the_broker_holds_enough() -> None:
    clock, stop = MonotonicClock(), asyncio.Event()
    ledger = MemoryLedger(clock)
    polls = watched(ledger, clock)
    await ledger.submissions.submit([submission() for _ in range(5_000)])
    async with MemoryBroker() as broker:
        for priority in Priority:
            await broker.consume(work_route(priority), 1, lambda _: None)  # somebody who is busy
        message = Message(work_route(Priority.MEDIUM), encode([run().reference]))
        await broker.publish([message] * (ENOUGH_MESSAGES + 1))
        relay = roles.relay(roles.Ports(ledger, broker, Metrics()), SETTINGS)
        running = asyncio.create_task(relay.run(stop, grace_seconds=1.0))
        await eventually(lambda: FEW_ROWS in [poll.most for poll in polls])
        stop.set()
        await running
    assert polls[0].most == SETTINGS.outbox_batch_size
