"""What the tests of the stages share: bringing tasks as far as the stage under test takes them up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.broker import BrokerUnavailable
from pipeline.broker.memory import MemoryBroker
from pipeline.duty import Duty
from pipeline.flow import Parcel
from pipeline.slots import Slots
from pipeline.stages import Wave
from pipeline.testing import ManualClock
from tests.support.builders import run, submission

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from pipeline.broker import Depth
    from pipeline.clock import Clock
    from pipeline.testing import MemoryLedger
    from storage.model import OutboxRow, Reference, Run


class SilentBroker(MemoryBroker):
    """Tells the depth of all queues but one, as a broker does whose quorum queue has no leader."""

    def __init__(self, silent: str) -> None:
        super().__init__()
        self._silent = silent

    async def depth(self, queue: str) -> Depth | None:
        if queue == self._silent:
            raise BrokerUnavailable("no answer")
        return await super().depth(queue)


class Running:
    """A run that nobody stops."""

    def cancel(self) -> None:
        raise AssertionError


def ending(slots: Slots, count: int) -> None:
    """Let handlers start and end."""
    for _ in range(count):
        task = run()
        slots.reserve(task.reference)
        slots.start(task, Running())
        slots.ended(task.reference)
        slots.release(task.reference)


async def busy(count: int, ends: int, claim_seconds: float = 0.01) -> Slots:
    """Slots in which so many handlers ended in the last second, when the last claim took so long."""
    clock = ManualClock()
    slots = Slots(count, clock)
    ending(slots, ends)
    await clock.advance(1.0)
    slots.claimed(claim_seconds)
    return slots


def on_duty(clock: Clock) -> Duty:
    """A worker of which the database has just heard."""
    duty = Duty(clock, lease_seconds=30.0)
    duty.heard(clock.now())
    return duty


class Poll(NamedTuple):
    """A look into the outbox: when it was made, and how many rows it asked for."""

    at: float
    most: int


def watched(ledger: MemoryLedger, clock: Clock, seconds: float = 0.0) -> list[Poll]:
    """Let each poll take so long; which were made, by the clock."""
    polls = list[Poll]()
    original = ledger.outbox.poll

    async def poll(most: int, lease_seconds: float) -> list[OutboxRow]:
        polls.append(Poll(clock.now(), most))
        if seconds:
            await clock.sleep(seconds)
        return await original(most, lease_seconds)

    ledger.outbox.poll = poll  # type: ignore[method-assign]  # watched
    return polls


async def sent(ledger: MemoryLedger, count: int = 1, **fields: Any) -> list[Reference]:
    """Submit tasks and let the outbox go, as a relay does once the broker holds them."""
    await ledger.submissions.submit([submission(**fields) for _ in range(count)])
    rows = await ledger.outbox.poll(1000, 30)
    await ledger.outbox.settle([(row.id, 0.0) for row in rows])
    return [row.reference for row in rows]


async def claimed(ledger: MemoryLedger, worker_id: UUID, **fields: Any) -> Run:
    """Bring one task into a worker's hands."""
    references = await sent(ledger, **fields)
    [run] = await ledger.runs.claim(references, worker_id, ["echo"])
    return run


def wave_of(references: Sequence[Reference]) -> tuple[Wave, list[BaseException | None]]:
    """A wave, and the list in which it is noted how it was settled."""
    settled: list[BaseException | None] = []

    async def settle(failure: BaseException | None) -> None:
        settled.append(failure)

    return Wave(list(references), Parcel(list(references), settle)), settled


async def ready(broker: MemoryBroker, queue: str) -> int:
    """How many messages wait in a queue; 0 where there is none."""
    depth = await broker.depth(queue)
    return depth.ready if depth else 0


async def kept(broker: MemoryBroker, queue: str) -> int:
    """How many messages the broker still has once all unsettled ones are back: what was acked is gone."""
    broker.stop()
    broker.start()
    return await ready(broker, queue)
