"""The five stages, each alone in ten lines; `documents/testing-stages.md` shows these very functions."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from pipeline.broker import Depth, Message
from pipeline.references import encode
from pipeline.slots import Slots
from pipeline.stages import Consume, DeadLetter, Failed, PollOutbox, Publish, RouteRetry
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.model import Dead, OutboxRow, Priority, Retry
from tests.support.builders import failure, run, submission

DOCUMENT = Path(__file__).parents[2] / "documents" / "testing-stages.md"


async def test_poll_outbox_leases_what_is_due() -> None:
    ledger = MemoryLedger(ManualClock())
    await ledger.submissions.submit([submission(priority=Priority.HIGH)])
    async with PollOutbox(ledger.outbox, ledger.signals) as poll:
        parcel = await poll.pull()
        assert parcel is not None
        assert [row.route for row in parcel.body] == ["tasks.high"]


async def test_publish_declares_the_queue_that_is_missing() -> None:
    async with MemoryBroker() as broker:
        task = run()
        row = OutboxRow(id=1, task_id=task.task_id, dispatch=1, priority=Priority.LOW, route="tasks.low")
        assert (await Publish(broker)([row])).confirmed == [row]
        assert await broker.depth("tasks.low") == Depth(ready=1, consumers=0)


async def test_consume_takes_as_much_as_it_has_slots_for() -> None:
    ledger, slots, references = MemoryLedger(ManualClock()), Slots(2), [run().reference for _ in range(3)]
    async with MemoryBroker() as broker, Consume(broker, ["tasks.high"], slots, ledger.runs) as consume:
        await broker.publish([Message("tasks.high", encode(references))])
        parcel = await consume.pull()
        assert parcel is not None
        assert parcel.body.references == references[:2]
        assert (slots.free, consume.unclaimed) == (0, 1)


async def test_route_retry_sends_the_second_repeat_by_the_second_delay() -> None:
    failed = Failed(run(attempt=2, priority=Priority.HIGH), failure("no answer"))
    verdict = await RouteRetry(delays_seconds=(5, 30))(failed)
    assert isinstance(verdict, Retry)
    assert (verdict.route, verdict.delay_seconds) == ("tasks.high.retry.30s", 30.0)


async def test_dead_letter_ends_what_no_retry_took_up() -> None:
    failed = Failed(run(attempt=4, max_retries=3), failure("still no answer"))
    verdict = await DeadLetter()(await RouteRetry()(failed))
    assert verdict == Dead(failed.run, failed.failure)


@pytest.mark.parametrize(
    "example",
    [
        test_poll_outbox_leases_what_is_due,
        test_publish_declares_the_queue_that_is_missing,
        test_consume_takes_as_much_as_it_has_slots_for,
        test_route_retry_sends_the_second_repeat_by_the_second_delay,
        test_dead_letter_ends_what_no_retry_took_up,
    ],
)
def test_the_document_shows_it_and_it_has_at_most_ten_lines(example: object) -> None:
    source = inspect.getsource(example)  # type: ignore[arg-type]  # a function, which object hides
    assert len(source.splitlines()) <= 10
    assert source in DOCUMENT.read_text()
