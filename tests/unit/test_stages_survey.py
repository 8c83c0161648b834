"""The gauges of the janitor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from pipeline.broker import BrokerUnavailable, Message
from pipeline.monitoring import Metrics
from pipeline.stages import SurveyOutbox, SurveyQueues
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import Unavailable
from storage.model import Priority
from tests.support.builders import beat, submission
from tests.support.stages import SilentBroker

if TYPE_CHECKING:
    from storage.model import Backlog


def value(metrics: Metrics, name: str, queue: str | None = None) -> float | None:
    return metrics.registry.get_sample_value(f"baton_{name}", {"queue": queue} if queue else {})


async def test_the_backlog_and_the_workers_are_shown() -> None:
    clock, metrics = ManualClock(), Metrics()
    ledger = MemoryLedger(clock)
    await ledger.workers.beat(beat(queues=("tasks.high",)))
    await ledger.submissions.submit([submission(priority=Priority.HIGH) for _ in range(2)])
    await clock.advance(40)
    await SurveyOutbox(ledger.upkeep, ledger.outbox, metrics)(None)
    assert value(metrics, "outbox_due_rows", "tasks.high") == 2
    assert value(metrics, "outbox_oldest_due_age_seconds", "tasks.high") == 40
    assert value(metrics, "outbox_due_rows", "tasks.low") == 0
    assert value(metrics, "outbox_failed_rows") == 0
    assert [value(metrics, "workers_alive", queue) for queue in ("tasks.high", "tasks.low")] == [1, 0]


async def test_without_a_database_nothing_is_shown_rather_than_what_was() -> None:
    ledger, metrics = MemoryLedger(ManualClock()), Metrics()
    survey = SurveyOutbox(ledger.upkeep, ledger.outbox, metrics)
    await survey(None)

    async def away(most: int) -> Backlog:
        raise Unavailable(f"away, asked for {most}")

    ledger.upkeep.backlog = away  # type: ignore[method-assign]  # the fault
    with pytest.raises(Unavailable):
        await survey(None)
    names = ("outbox_due_rows", "outbox_oldest_due_age_seconds", "workers_alive")
    assert [value(metrics, name, "tasks.high") for name in names] == [None, None, None]
    assert math.isnan(value(metrics, "outbox_failed_rows") or 0.0)


async def test_a_queue_that_does_not_answer_hides_no_other() -> None:
    metrics = Metrics()
    async with SilentBroker("tasks.high") as broker:
        await broker.declare("tasks.low")
        with pytest.raises(BrokerUnavailable):
            await SurveyQueues(broker, metrics)(None)
    names = ("tasks.high", "tasks.low")
    assert [value(metrics, "queue_messages_ready", queue) for queue in names] == [None, 0]


async def test_queues_are_shown_while_there_is_a_broker() -> None:
    metrics = Metrics()
    async with MemoryBroker() as broker:
        survey = SurveyQueues(broker, metrics)
        await broker.declare("tasks.low")
        await broker.publish([Message("tasks.low", b""), Message("tasks.low", b"")])
        await broker.consume("tasks.high", 1, lambda _delivery: None)
        await survey(None)
        assert value(metrics, "queue_messages_ready", "tasks.low") == 2
        assert value(metrics, "queue_consumers", "tasks.high") == 1
        assert value(metrics, "queue_consumers", "tasks.medium") is None
        broker.stop()
        with pytest.raises(BrokerUnavailable):
            await survey(None)
    assert value(metrics, "queue_messages_ready", "tasks.low") is None
    assert value(metrics, "queue_consumers", "tasks.high") is None
