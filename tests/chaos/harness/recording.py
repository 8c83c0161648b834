"""The ports of a program with a pen: each writes into the history what it was asked and what it answered.

They stand directly on PostgreSQL and RabbitMQ, below everything that a mutant may replace.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from pipeline.broker.rabbit import RabbitBroker
from pipeline.references import Undecodable, decode
from storage.ledger import PostgresLedger
from tests.chaos.harness.events import (
    Beaten,
    Buried,
    Claimed,
    Counted,
    DeclaredDead,
    Delivered,
    HandedBack,
    Letting,
    Polled,
    Published,
    Recorded,
    Ref,
    Rescued,
    Settling,
)
from tests.chaos.harness.history import now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Literal
    from uuid import UUID

    from pipeline.broker import Delivery, Message, Publication
    from pipeline.broker.rabbit.consumer import RabbitSubscription
    from pipeline.ports import DeadLetters, Outbox, Runs, Upkeep, Workers
    from storage import model
    from storage.database import Address
    from tests.chaos.harness.history import Log


class Recorder:
    """Makes the ports of one program, which write into one log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def ledger(self, address: Address, **options: Any) -> PostgresLedger:
        """Stand in for PostgresLedger."""
        ledger: Any = PostgresLedger(address, **options)
        ledger.outbox = RecordedOutbox(ledger.outbox, self._log)
        ledger.runs = RecordedRuns(ledger.runs, self._log)
        ledger.workers = RecordedWorkers(ledger.workers, self._log)
        ledger.upkeep = RecordedUpkeep(ledger.upkeep, self._log)
        ledger.dead_letters = RecordedDeadLetters(ledger.dead_letters, self._log)
        made: PostgresLedger = ledger
        return made

    def broker(self, url: str, connection_name: str) -> RabbitBroker:
        """Stand in for RabbitBroker."""
        return RecordedBroker(url, connection_name, self._log)


class _Port:
    """Hands on what is not written down."""

    def __init__(self, port: object, log: Log) -> None:
        self._port = port
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


class RecordedOutbox(_Port):
    """The relay's hand."""

    _port: Outbox

    async def poll(self, most: int, lease_seconds: float) -> list[model.OutboxRow]:
        """Lease rows."""
        rows = await self._port.poll(most, lease_seconds)
        leased = [(row.id, str(row.task_id), row.dispatch, row.route) for row in rows]
        self._log.write(Polled(at=now(), by=self._log.by, rows=leased))
        return rows

    async def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
        """Delete rows."""
        self._log.write(Settling(at=now(), by=self._log.by, rows=[row_id for row_id, _ in confirmed]))
        await self._port.settle(confirmed)

    async def returned(
        self, row_ids: Sequence[int], error: str, most: int, delay_seconds: float
    ) -> list[int]:
        """Count an attempt."""
        failed = await self._port.returned(row_ids, error, most, delay_seconds)
        self._log.write(Counted(at=now(), by=self._log.by, rows=list(row_ids), failed=failed))
        return failed


class RecordedRuns(_Port):
    """The worker's hand."""

    _port: Runs

    async def claim(
        self, references: Sequence[model.Reference], worker_id: UUID, kinds: Sequence[str]
    ) -> list[model.Run]:
        """Take references."""
        began = now()
        runs = await self._port.claim(references, worker_id, kinds)
        self._log.write(
            Claimed(
                at=now(),
                by=self._log.by,
                began=began,
                worker=str(worker_id),
                asked=_refs(references),
                taken=_refs(run.reference for run in runs),
            )
        )
        return runs

    async def record(self, verdicts: Sequence[model.Verdict]) -> list[model.Recorded]:
        """Write verdicts."""
        began = now()
        answers = await self._port.record(verdicts)
        told = [
            (
                str(verdict.run.task_id),
                verdict.run.dispatch,
                verdict.run.replay,
                type(verdict).__name__,
                answer.status and int(answer.status),
            )
            for verdict, answer in zip(verdicts, answers, strict=True)
        ]
        self._log.write(Recorded(at=now(), by=self._log.by, began=began, verdicts=told))
        return answers

    async def hand_back(self, references: Sequence[model.Reference], delay_seconds: float) -> None:
        """Give references back."""
        began = now()
        await self._port.hand_back(references, delay_seconds)
        self._log.write(HandedBack(at=now(), by=self._log.by, began=began, references=_refs(references)))


class RecordedWorkers(_Port):
    """Liveness."""

    _port: Workers

    async def beat(self, beat: model.Heartbeat) -> bool:
        """Report for duty."""
        began = now()
        alive = await self._port.beat(beat)
        worker = str(beat.worker_id)
        self._log.write(Beaten(at=now(), by=self._log.by, began=began, worker=worker, alive=alive))
        return alive

    async def declare_disconnected_dead(self, disconnected: Sequence[model.Disconnected]) -> list[UUID]:
        """Declare disconnected workers dead."""
        began = now()
        return self._declared(began, await self._port.declare_disconnected_dead(disconnected))

    async def declare_dead(self, *lease_seconds: float) -> list[UUID]:
        """Declare silent workers dead."""
        began = now()
        return self._declared(began, await self._port.declare_dead(*lease_seconds))

    def _declared(self, began: float, dead: list[UUID]) -> list[UUID]:
        workers = [str(worker_id) for worker_id in dead]
        self._log.write(DeclaredDead(at=now(), by=self._log.by, began=began, workers=workers))
        return dead


class RecordedUpkeep(_Port):
    """The janitor's hand."""

    _port: Upkeep

    async def rescue(self, most: int, lease_seconds: float, *, hung: bool = True) -> list[model.Rescued]:
        """Dispatch again what was lost."""
        rescued = await self._port.rescue(most, lease_seconds, hung=hung)
        runs = [(str(run.reference.task_id), run.reference.dispatch, int(run.status)) for run in rescued]
        if runs:
            self._log.write(Rescued(at=now(), by=self._log.by, runs=runs))
        return rescued


class RecordedDeadLetters(_Port):
    """Evidence."""

    _port: DeadLetters

    async def bury(self, references: Sequence[model.Reference]) -> int:
        """Decide over references found in the DLQ."""
        began = now()
        sent = await self._port.bury(references)
        self._log.write(Buried(at=now(), by=self._log.by, began=began, references=_refs(references)))
        return sent

    async def bury_undecodable(self, body: bytes, headers: Mapping[str, object], error: str) -> None:
        """Keep a message nobody can read."""
        began = now()
        await self._port.bury_undecodable(body, headers, error)
        self._log.write(Buried(at=now(), by=self._log.by, began=began, references=[]))


class RecordedBroker(RabbitBroker):
    """RabbitMQ."""

    def __init__(self, url: str, connection_name: str, log: Log) -> None:
        super().__init__(url, connection_name)
        self._log = log
        self._deliveries = count(1)

    async def publish(self, messages: Sequence[Message]) -> list[Publication]:
        """Send messages."""
        began = now()
        answers = await super().publish(messages)
        told = [
            (message.route, _refs(decode(message.body)), answer.name)
            for message, answer in zip(messages, answers, strict=True)
        ]
        self._log.write(Published(at=now(), by=self._log.by, began=began, messages=told))
        return answers

    async def consume(
        self, queue: str, prefetch: int, deliver: Callable[[Delivery], None]
    ) -> RabbitSubscription:
        """Consume a queue."""

        def received(delivery: Delivery) -> None:
            number = next(self._deliveries)
            try:
                references = _refs(decode(delivery.body))
            except Undecodable:
                references = []
            event = Delivered(at=now(), by=self._log.by, delivery=number, queue=queue, references=references)
            self._log.write(event)
            deliver(RecordedDelivery(delivery, number, self._log))

        return await super().consume(queue, prefetch, received)


class RecordedDelivery:
    """One message in a program's hands."""

    def __init__(self, delivery: Delivery, number: int, log: Log) -> None:
        self._delivery = delivery
        self._number = number
        self._log = log
        self.queue = delivery.queue
        self.body = delivery.body
        self.headers = delivery.headers

    async def ack(self) -> None:
        """Let the broker forget it."""
        self._letting("ack")
        await self._delivery.ack()

    async def nack(self) -> None:
        """Give it back."""
        self._letting("nack")
        await self._delivery.nack()

    async def reject(self) -> None:
        """Refuse it for good."""
        self._letting("reject")
        await self._delivery.reject()

    def _letting(self, how: Literal["ack", "nack", "reject"]) -> None:
        self._log.write(Letting(at=now(), by=self._log.by, delivery=self._number, how=how))


def _refs(references: Iterable[model.Reference]) -> list[Ref]:
    return [(str(reference.task_id), reference.dispatch) for reference in references]
