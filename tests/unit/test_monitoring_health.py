"""Whether a process is ready, by what its ports have seen; time is moved by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from pipeline.monitoring import MeasuredBroker, MeasuredLedger, Metrics, Progress
from pipeline.monitoring.health import STALL_SECONDS, Health, examine
from pipeline.settings import Role, Settings
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import SchemaMismatch, Unavailable
from tests.support.builders import beat, done, submission
from tests.support.stages import claimed, sent

if TYPE_CHECKING:
    from pipeline.broker import Delivery

LEASE_SECONDS = 30.0
QUEUE = "tasks.high"
WORKER = uuid4()


class Process:
    """The measured ports of a process with one role, and its health."""

    def __init__(self, role: Role) -> None:
        self.settings = Settings(
            role=frozenset({role}), worker_queues=(QUEUE,), worker_lease_seconds=LEASE_SECONDS
        )
        self.clock = ManualClock()
        self.progress = Progress(self.clock)
        self.inside = MemoryLedger(self.clock)
        self.memory_broker = MemoryBroker(clock=self.clock)
        self.broker = MeasuredBroker(self.memory_broker, Metrics(), self.progress)
        self.ledger = MeasuredLedger(self.inside, Metrics(), self.progress)

    async def health(self) -> Health:
        return await examine(self.settings, self.progress)

    async def behind(self) -> list[str]:
        """What keeps it from being ready."""
        health = await self.health()
        behind = [finding.check for finding in health.checks if not finding.ok]
        assert health.ready is not bool(behind)
        return behind

    def replace(self, hand: str, method: str, by: Any) -> None:
        """Replace a method of the ledger inside, and measure it anew."""
        setattr(getattr(self.inside, hand), method, by)
        self.ledger = MeasuredLedger(self.inside, Metrics(), self.progress)


async def _away(*_args: object, **_options: object) -> Any:
    raise Unavailable("away")


class TestStart:
    @pytest.mark.parametrize("role", Role)
    async def test_a_process_that_has_done_nothing_is_not_ready(self, role: Role) -> None:
        settings = Settings(role=frozenset({role}))
        health = await examine(settings, Progress(ManualClock()))
        assert not health.ready
        assert {finding.role for finding in health.checks} == {role}

    async def test_a_process_with_all_roles_is_examined_for_all(self) -> None:
        health = await examine(Settings(), Progress(ManualClock()))
        assert {finding.role for finding in health.checks} == set(Role)


class TestRelay:
    async def test_it_must_poll(self) -> None:
        process = Process(Role.RELAY)
        await process.ledger.outbox.poll(10, 30)
        assert await process.behind() == []
        await process.clock.advance(process.settings.outbox_poll_interval + STALL_SECONDS + 1)
        assert await process.behind() == ["poll"]
        await process.ledger.outbox.poll(10, 30)
        assert await process.behind() == []

    async def test_a_poll_that_failed_is_none(self) -> None:
        process = Process(Role.RELAY)
        process.replace("outbox", "poll", _away)
        with pytest.raises(Unavailable):
            await process.ledger.outbox.poll(10, 30)
        assert await process.behind() == ["poll"]

    @pytest.mark.parametrize("answer", ["settle", "returned"])
    async def test_what_it_polls_must_be_answered_by_the_broker(self, answer: str) -> None:
        process = Process(Role.RELAY)
        await process.inside.submissions.submit([submission() for _ in range(3)])
        [first] = await process.ledger.outbox.poll(1, 30)
        await process.clock.advance(10)
        await process.ledger.outbox.poll(1, 30)
        await process.ledger.outbox.release([first.id], 1.0)
        await process.clock.advance(6)
        await process.ledger.outbox.poll(1, 30)
        assert await process.behind() == ["confirm"]
        if answer == "settle":
            await process.ledger.outbox.settle([(first.id, 0.0)])
        else:
            await process.ledger.outbox.returned([first.id], "no queue", 5, 1.0)
        assert await process.behind() == []

    async def test_rows_that_went_another_way_keep_nobody_waiting_for_ever(self) -> None:
        process = Process(Role.RELAY)
        await process.inside.submissions.submit([submission()])
        [row] = await process.ledger.outbox.poll(10, 30)
        await process.inside.outbox.settle([(row.id, 0.0)])  # by another relay
        await process.clock.advance(20)
        await process.ledger.outbox.poll(10, 30)
        assert await process.behind() == ["confirm"]
        await process.clock.advance(11)
        await process.ledger.outbox.poll(10, 30)
        assert await process.behind() == []

    async def test_what_another_poll_does_not_find_may_still_be_under_way(self) -> None:
        process = Process(Role.RELAY)
        await process.inside.submissions.submit([submission()])
        [row] = await process.ledger.outbox.poll(10, 5)
        for _ in range(8):
            await process.clock.advance(2)
            await process.ledger.outbox.renew([row.id], 5)
            assert await process.ledger.outbox.poll(10, 5) == []
        assert await process.behind() == ["confirm"]


class TestWorker:
    @pytest.fixture
    async def process(self) -> Process:
        """A worker that is ready."""
        process = Process(Role.WORKER)
        process.memory_broker.start()

        def deliver(_delivery: Delivery) -> None:
            pass

        await process.broker.consume(QUEUE, 4, deliver)
        await process.ledger.workers.beat(beat(WORKER))
        assert await process.behind() == []
        return process

    async def test_its_heartbeat_must_be_within_half_a_lease(self, process: Process) -> None:
        await process.clock.advance(LEASE_SECONDS / 2)
        assert await process.behind() == []
        await process.clock.advance(0.1)
        assert await process.behind() == ["heartbeat"]
        await process.ledger.workers.beat(beat(WORKER))
        assert await process.behind() == []

    async def test_a_heartbeat_counts_from_when_it_was_sent(self, process: Process) -> None:
        async def slow(_beat: object) -> bool:
            await process.clock.advance(LEASE_SECONDS / 2 + 1)
            return True

        process.replace("workers", "beat", slow)
        await process.ledger.workers.beat(beat(WORKER))
        assert await process.behind() == ["heartbeat"]

    async def test_the_heartbeat_of_a_dead_worker_does_not_count(self, process: Process) -> None:
        await process.clock.advance(LEASE_SECONDS + 1)
        await process.inside.workers.declare_dead(LEASE_SECONDS)
        assert not await process.ledger.workers.beat(beat(WORKER))
        assert await process.behind() == ["heartbeat"]

    async def test_its_consumers_must_be_attached(self, process: Process) -> None:
        await process.clock.advance(STALL_SECONDS)
        process.memory_broker.stop()
        await process.clock.advance(STALL_SECONDS)
        await process.ledger.workers.beat(beat(WORKER))
        assert await process.behind() == []
        await process.clock.advance(1)
        assert await process.behind() == [f"consumer of {QUEUE}"]
        process.memory_broker.start()
        assert await process.behind() == []

    @pytest.mark.parametrize(("method", "check"), [("claim", "claim"), ("record", "verdict")])
    async def test_what_it_asks_of_the_database_must_be_answered(
        self, process: Process, method: str, check: str
    ) -> None:
        [reference], run = await sent(process.inside), await claimed(process.inside, WORKER)
        asked = ([reference], WORKER, ["echo"]) if method == "claim" else ([done(run)],)
        answering = getattr(process.inside.runs, method)
        process.replace("runs", method, _away)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await getattr(process.ledger.runs, method)(*asked)
            await process.clock.advance(STALL_SECONDS / 2 + 0.1)
        await process.ledger.workers.beat(beat(WORKER))
        assert await process.behind() == [check]
        process.replace("runs", method, answering)
        await getattr(process.ledger.runs, method)(*asked)
        assert await process.behind() == []


async def test_the_dead_letter_role_must_consume_the_dlq() -> None:
    process = Process(Role.DEAD_LETTER)
    assert await process.behind() == ["consumer of tasks.dlq"]
    process.memory_broker.start()
    await process.broker.consume("tasks.dlq", 4, lambda _delivery: None)
    assert await process.behind() == []


async def test_the_janitor_must_complete_its_rounds() -> None:
    process = Process(Role.JANITOR)
    await process.ledger.upkeep.rescue(10, LEASE_SECONDS)
    assert await process.behind() == []
    await process.clock.advance(LEASE_SECONDS / 6 + STALL_SECONDS + 1)
    assert await process.behind() == ["rescue"]
    process.replace("upkeep", "rescue", _away)
    with pytest.raises(Unavailable):
        await process.ledger.upkeep.rescue(10, LEASE_SECONDS)
    assert await process.behind() == ["rescue"]


class TestGateway:
    async def test_its_database_must_answer(self) -> None:
        assert await Process(Role.GATEWAY).behind() == []

    @pytest.mark.parametrize("error", [Unavailable("refused"), SchemaMismatch("old; run `baton migrate`")])
    async def test_otherwise_it_says_what_is_wrong(self, error: Exception) -> None:
        process = Process(Role.GATEWAY)

        async def fails() -> None:
            raise error

        process.progress.ask_database = fails
        [finding] = (await process.health()).checks
        assert (finding.ok, finding.check) == (False, "database")
        assert str(error) in finding.error

    async def test_a_database_that_says_nothing_keeps_no_probe_waiting(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipeline.monitoring.health.DATABASE_SECONDS", 0.01)
        process = Process(Role.GATEWAY)

        async def silent() -> None:
            await asyncio.Event().wait()

        process.progress.ask_database = silent
        async with asyncio.timeout(5):
            [finding] = (await process.health()).checks
        assert (finding.ok, finding.error) == (False, "no answer within 0.01 seconds")
