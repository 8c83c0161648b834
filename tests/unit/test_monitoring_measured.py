"""The measured ports: what they count, on a ledger and a broker in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from pipeline.broker import Message, Publication
from pipeline.handlers import handler
from pipeline.handlers.registry import Handlers
from pipeline.handlers.runners import Runners
from pipeline.monitoring import MeasuredBroker, MeasuredExecute, MeasuredLedger, Metrics, Progress
from pipeline.settings import Role
from pipeline.slots import Slots
from pipeline.stages.execute import Execute
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import Unavailable
from storage.model import Caller, Done, Priority, Reference
from tests.support.builders import beat, cancelled, dead, done, interrupted, retry, submission
from tests.support.stages import busy, claimed, sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.stages.execute import Outcome
    from storage.model import Run, Verdict

CALLER = Caller()
WORKER = uuid4()


class Measured:
    """A measured ledger on a clock, and what it has counted."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics(kinds=["echo"])
        self.progress = Progress(self.clock)
        self.inside = MemoryLedger(self.clock)
        self.ledger = MeasuredLedger(self.inside, self.metrics, self.progress)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"baton_{name}", labels)


@pytest.fixture
def measured() -> Measured:
    return Measured()


async def test_new_tasks_are_accepted_and_a_repeated_key_is_none(measured: Measured) -> None:
    for _ in range(2):
        await measured.ledger.submissions.submit(
            [submission(key="k", fingerprint="f"), submission(priority=Priority.HIGH)]
        )
    await measured.ledger.submissions.submit([submission(key="k", fingerprint="other")])
    assert measured.value("tasks_accepted_total", queue="tasks.medium") == 1
    assert measured.value("tasks_accepted_total", queue="tasks.high") == 2


async def test_a_group_that_was_not_written_is_not_accepted(measured: Measured) -> None:
    with pytest.raises(Exception, match="NUL"):
        await measured.ledger.submissions.submit([submission(payload='"\x00"')])
    assert measured.value("tasks_accepted_total", queue="tasks.medium") == 0


async def test_cancellations_count_by_the_status_they_left(measured: Measured) -> None:
    run = await claimed(measured.inside, WORKER)
    [waiting] = await sent(measured.inside)
    for task_id in (run.task_id, waiting.task_id, uuid4()):
        await measured.ledger.tasks.cancel(CALLER, task_id)
    assert measured.value("cancel_requests_total", status="in_progress") == 1
    assert measured.value("cancel_requests_total", status="cancelled") == 1


async def test_a_claim_counts_who_is_taken_and_who_is_refused(measured: Measured) -> None:
    references = await sent(measured.inside, 3)
    await measured.clock.advance(7)
    await measured.ledger.runs.claim([*references, Reference(uuid4(), 1)], WORKER, ["echo"])
    assert measured.value("references_claimed_total", queue="tasks.medium") == 3
    assert measured.value("references_refused_total") == 1
    assert measured.value("task_wait_seconds_count", queue="tasks.medium") == 3
    assert measured.value("task_wait_seconds_sum", queue="tasks.medium") == pytest.approx(21)


async def test_every_way_a_run_ends_is_an_outcome_of_its_own(measured: Measured) -> None:
    runs = [await claimed(measured.inside, WORKER) for _ in range(7)]
    await measured.inside.tasks.cancel(CALLER, runs[6].task_id)
    verdicts: list[Verdict] = [
        done(runs[0]),
        retry(runs[1]),
        retry(runs[2], burns_attempt=False),
        dead(runs[3]),
        cancelled(runs[4]),
        interrupted(runs[5]),
        retry(runs[6]),
    ]
    await measured.ledger.runs.record(verdicts)
    await measured.ledger.runs.record([done(runs[5])])
    counts = {"completed": 1, "retried": 1, "postponed": 1, "failed": 1, "cancelled": 2, "interrupted": 1}
    for outcome, count in (counts | {"refused": 1}).items():
        assert measured.value("runs_ended_total", kind="echo", outcome=outcome) == count, outcome


async def test_a_kind_outside_the_registry_is_unknown(measured: Measured) -> None:
    [reference] = await sent(measured.inside, kind="made-up")
    [run] = await measured.inside.runs.claim([reference], WORKER, ["made-up"])
    await measured.ledger.runs.record([done(run)])
    assert measured.value("runs_ended_total", kind="unknown", outcome="completed") == 1
    assert measured.value("runs_ended_total", kind="made-up", outcome="completed") is None


async def test_what_is_handed_back_counts(measured: Measured) -> None:
    await measured.ledger.runs.hand_back(await sent(measured.inside, 2), 5.0)
    assert measured.value("references_handed_back_total") == 2


async def test_the_relay_counts_what_the_broker_took_and_what_no_queue_took(measured: Measured) -> None:
    await measured.inside.submissions.submit([submission() for _ in range(3)])
    confirmed, *undeliverable = await measured.ledger.outbox.poll(10, 30)
    await measured.ledger.outbox.settle([(confirmed.id, 0.0)])
    for _ in range(2):
        await measured.ledger.outbox.returned([row.id for row in undeliverable], "no queue", 2, 0.0)
        await measured.ledger.outbox.poll(10, 30)
    assert measured.value("references_published_total") == 1
    assert measured.value("outbox_rows_failed_total") == 2


async def test_the_janitor_counts_what_it_moves(measured: Measured) -> None:
    await measured.ledger.workers.beat(beat(WORKER))
    await claimed(measured.inside, WORKER)
    await sent(measured.inside, priority=Priority.LOW)
    await measured.clock.advance(60)
    assert await measured.ledger.workers.declare_dead(30) == [WORKER]
    await measured.ledger.upkeep.rescue(10, 30)
    await measured.ledger.upkeep.resend(Priority.LOW, None, 10)
    assert measured.value("workers_declared_dead_total") == 1
    assert measured.value("runs_rescued_total") == 1
    assert measured.value("references_resent_total", queue="tasks.low") == 1


async def test_messages_count_by_queue_and_answer(measured: Measured) -> None:
    async with MeasuredBroker(MemoryBroker(capacity=1), measured.metrics, measured.progress) as broker:
        for queue in ("tasks.high", "tasks.low.retry.5s", "tasks.low.retry.30s"):
            await broker.declare(queue)
        routes = [
            "tasks.high",
            "tasks.high",
            "tasks.low.retry.5s",
            "tasks.low.retry.30s",
            "tasks.medium",
            "x",
        ]
        answers = await broker.publish([Message(route, b"") for route in routes])
    assert answers[1] is Publication.REFUSED
    counted = {
        ("tasks.high", "confirmed"): 1,
        ("tasks.high", "refused"): 1,
        ("tasks.low.retry", "confirmed"): 2,
        ("tasks.medium", "returned"): 1,
        ("unknown", "returned"): 1,
    }
    for (queue, answer), count in counted.items():
        assert measured.value("publications_total", queue=queue, answer=answer) == count


async def test_a_run_is_timed_by_its_kind(measured: Measured) -> None:
    @handler("echo")
    async def echo(_: Any) -> None:
        await measured.clock.advance(3)

    run, slots, handlers = await claimed(measured.inside, WORKER), Slots(1), Handlers([echo])
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    async with Runners(1, handlers) as runners:
        execute = MeasuredExecute(Execute(handlers, runners, slots), measured.metrics, measured.clock)
        execute.start(run, outcome.set_result)
        assert await outcome == Done(run)
    assert measured.value("run_duration_seconds_sum", kind="echo") == 3


async def test_slots_are_shown_as_they_are(measured: Measured) -> None:
    slots = await busy(4, ends=1000)
    measured.metrics.follow(slots)
    slots.reserve(Reference(uuid4(), 1))
    assert (measured.value("worker_slots"), measured.value("worker_slots_used")) == (4, 1)


@pytest.mark.parametrize("role", Role)
def test_a_process_shows_the_metrics_of_its_roles_only(role: Role) -> None:
    def shown(roles: Sequence[Role]) -> set[str]:
        registry = Metrics(frozenset(roles)).registry
        return {family.name for family in registry.collect() if family.name.startswith("baton_")}

    others = [other for other in Role if other is not role]
    assert shown([role]) | shown(others) == shown(list(Role))
    assert not shown([role]) & shown(others)


async def test_what_a_port_raises_is_raised_and_not_counted(measured: Measured) -> None:
    async def away(*_args: object) -> list[Run]:
        raise Unavailable("away")

    measured.inside.runs.claim = away  # type: ignore[method-assign,assignment]  # the fault
    ledger = MeasuredLedger(measured.inside, measured.metrics, measured.progress)
    with pytest.raises(Unavailable):
        await ledger.runs.claim(await sent(measured.inside), WORKER, ["echo"])
    assert measured.value("references_refused_total") == 0
