"""The dead-letter role: what is evidence is kept, and nothing leaves the DLQ before it is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from pipeline.broker import Message
from pipeline.broker.topology import DLQ
from pipeline.flow import flow
from pipeline.references import encode
from pipeline.stages import Bury, Receive
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import LockTimeout, OutcomeUnknown, StorageError, Unavailable
from storage.model import Caller, Reference, Status
from tests.support.builders import dead, run
from tests.support.stages import claimed, kept, ready, sent
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.broker import Delivery

CALLER = Caller()


async def letters(ledger: MemoryLedger) -> set[object]:
    found = await ledger.dead_letters.find(CALLER, task_id=None, kind=None, before=None, limit=10)
    return {letter.task_id for letter in found}


async def bury_all(ledger: MemoryLedger, broker: MemoryBroker, expected: int) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(
        (flow(Receive(broker, DLQ, prefetch=1)) | Bury(ledger.dead_letters)).run(stop, 1.0)
    )

    async def done() -> bool:
        return len(await letters(ledger)) == expected and not await ready(broker, DLQ)

    await eventually(done)
    stop.set()
    await running


async def test_it_decides_by_the_database() -> None:
    ledger = MemoryLedger(ManualClock())
    failed = await claimed(ledger, uuid4())
    await ledger.runs.record([dead(failed)])
    await ledger.outbox.settle([(row.id, 0.0) for row in await ledger.outbox.poll(10, 30)])
    running = await claimed(ledger, uuid4())
    [waiting] = await sent(ledger)
    async with MemoryBroker() as broker:
        await broker.declare(DLQ)
        unknown = run().reference
        body = encode([failed.reference, running.reference, waiting, unknown])
        await broker.publish([Message(DLQ, body), Message(DLQ, b"\xff")])
        await bury_all(ledger, broker, expected=2)
        assert await kept(broker, DLQ) == 0
    assert await letters(ledger) == {failed.task_id, None}
    assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [waiting]
    statuses = await ledger.tasks.statuses([failed.task_id, running.task_id])
    assert [status for _, status in statuses.values()] == [Status.FAILED, Status.IN_PROGRESS]


class Faulty(MemoryLedger):
    """Fails the first two burials."""

    def __init__(self, failure: StorageError) -> None:
        super().__init__(ManualClock())
        self.failures = [failure, failure]
        self._bury = self.dead_letters.bury
        self.dead_letters.bury = self.bury  # type: ignore[method-assign]  # the fault

    async def bury(self, references: Sequence[Reference]) -> int:
        if self.failures:
            raise self.failures.pop()
        return await self._bury(references)


@pytest.mark.parametrize("failure", [Unavailable("away"), OutcomeUnknown("lost"), LockTimeout("locked")])
async def test_while_the_database_is_away_the_message_is_kept_in_hand(failure: StorageError) -> None:
    ledger, clock = Faulty(failure), ManualClock()
    task = await claimed(ledger, uuid4())
    await ledger.runs.record([dead(task)])
    received: list[Delivery] = []
    async with MemoryBroker() as broker:
        await broker.consume(DLQ, 1, received.append)
        await broker.publish([Message(DLQ, encode([task.reference]))])
        await eventually(lambda: received)
        burying = asyncio.create_task(Bury(ledger.dead_letters, clock)(received[0]))
        await clock.advance(10)
        await burying
        assert (ledger.failures, await letters(ledger), len(received)) == ([], {task.task_id}, 1)


async def test_a_message_that_cannot_be_buried_returns_after_a_moment() -> None:
    clock = ManualClock()
    async with MemoryBroker() as broker, Receive(broker, DLQ, clock=clock) as source:
        await broker.publish([Message(DLQ, b"x")])
        parcel = await source.pull()
        assert parcel is not None
        settling = asyncio.create_task(parcel.settle(ValueError("a bug")))
        await clock.advance(0.9)
        assert not settling.done()
        await clock.advance(0.2)
        await settling
        again = await asyncio.wait_for(source.pull(), timeout=0.5)
        assert again is not None
        assert again.body.headers["x-delivery-count"] == 1


async def test_on_drain_what_was_not_pulled_returns_and_a_failure_at_once() -> None:
    clock = ManualClock()
    async with MemoryBroker() as broker, Receive(broker, DLQ, clock=clock) as source:
        await broker.publish([Message(DLQ, b"1"), Message(DLQ, b"2")])
        parcel = await source.pull()
        assert parcel is not None
        settling = asyncio.create_task(parcel.settle(ValueError("a bug")))
        await source.quiesce()
        await asyncio.wait_for(settling, timeout=0.5)
        assert await source.pull() is None
        assert await ready(broker, DLQ) == 2
