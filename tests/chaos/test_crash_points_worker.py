"""A worker dies at a named point; only what it had claimed counts a loss, and nothing is recorded twice.

Beside it runs a relay. A janitor comes after the death, and only where something was claimed: it would send
again what the worker has lost.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.chaos.harness.crash import PATIENCE_SECONDS, Crash, Shown, at_rest, hand_over, holds, outbox, shown
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from typing import Any

    from tests.support.servers import Vhost
    from tests.support.service import Service

WORK = "tasks.medium"


async def waits(service: Service, task: dict[str, Any]) -> None:
    """Wait until a task is at the broker."""

    async def pending() -> bool:
        return (await shown(service, task)).status == "PENDING"

    await eventually(pending, seconds=PATIENCE_SECONDS)


async def starts(service: Service, task: dict[str, Any], *dispatches: int) -> None:
    """Wait until the handler has started under just these dispatches."""

    async def started() -> bool:
        return (await shown(service, task)).starts == dispatches

    await eventually(started, seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize("point", ["worker.after_first_beat", "worker.before_claim"])
async def test_what_was_not_claimed_goes_back_to_its_queue(
    deployed: Service, rabbitmq: Vhost, point: str
) -> None:
    task = await hand_over(deployed, "work.do")
    worker = Crash(deployed, point, "worker")
    await worker.start()
    await deployed.start("relay")
    async with worker.there():
        await waits(deployed, task)
        await holds(rabbitmq, WORK, unacked=1)
        assert await deployed.database.fetch("SELECT running FROM workers WHERE dead_at IS NULL") == [(0,)]
    await holds(rabbitmq, WORK, ready=1)
    await worker.start()
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))
    await at_rest(deployed, rabbitmq)


@pytest.mark.parametrize(
    ("point", "unacked", "started"),
    [
        pytest.param("worker.after_claim", 1, (), id="after_claim"),
        pytest.param("worker.after_ack", 0, (), id="after_ack"),
        pytest.param("worker.in_handler", 0, (1,), id="in_handler"),
        pytest.param("worker.after_run", 0, (1,), id="after_run"),
    ],
)
async def test_what_was_claimed_counts_one_loss_and_runs_under_the_next_dispatch(
    deployed: Service, rabbitmq: Vhost, point: str, unacked: int, started: tuple[int, ...]
) -> None:
    handler = "work.gated" if point == "worker.in_handler" else "work.do"
    task = await hand_over(deployed, handler, max_retries=0)
    worker = Crash(deployed, point, "worker")
    await worker.start()
    await deployed.start("relay")
    async with worker.there():
        await holds(rabbitmq, WORK, unacked=unacked)
        await starts(deployed, task, *started)
        assert await shown(deployed, task) == Shown("IN_PROGRESS", 1, starts=started)
        assert await deployed.database.fetch("SELECT 1 FROM results") == []
    deployed.open_gate(2)
    await deployed.start("janitor")
    await worker.start()
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 2, losses=1, starts=(*started, 2))
    assert await deployed.database.fetch("SELECT count(*)::int FROM results") == [(1,)]


@pytest.mark.parametrize(
    ("handler", "recorded", "ended"),
    [
        ("work.do", Shown("COMPLETED", 1, starts=(1,)), Shown("COMPLETED", 1, starts=(1,))),
        ("work.fail", Shown("PENDING", 2, 2, starts=(1,)), Shown("FAILED", 2, 2, starts=(1, 2))),
        ("work.permanent", Shown("FAILED", 1, starts=(1,)), Shown("FAILED", 1, starts=(1,))),
    ],
)
async def test_a_verdict_whose_answer_was_not_heard_stands(
    deployed: Service, rabbitmq: Vhost, handler: str, recorded: Shown, ended: Shown
) -> None:
    task = await hand_over(deployed, handler, max_retries=1)
    worker = Crash(deployed, "worker.after_record", "worker")
    await worker.start(RETRY_DELAYS_SECONDS="3")
    await deployed.start("relay")
    async with worker.there():
        assert await shown(deployed, task) == recorded
        assert await deployed.database.fetch("SELECT 1 FROM tasks WHERE worker_id IS NOT NULL") == []
    await worker.start()
    assert await deployed.all_ended(1) == {ended.status: 1}
    failed = int(ended.status == "FAILED")
    await at_rest(deployed, rabbitmq, notices=failed)
    assert await shown(deployed, task) == ended
    assert await deployed.database.fetch("SELECT count(*)::int FROM dead_letters") == [(failed,)]


async def test_what_a_claim_has_handed_back_is_handed_back_again_and_starts_once(
    deployed: Service, rabbitmq: Vhost
) -> None:
    task = await hand_over(deployed, "work.do")
    await deployed.start("relay")
    await waits(deployed, task)
    await deployed.database.fetch("UPDATE queues SET paused = true RETURNING 1")
    worker = Crash(deployed, "worker.after_refused_claim", "worker")
    await worker.start()
    async with worker.there():
        await holds(rabbitmq, WORK, unacked=1)
        assert await outbox(deployed) == [(1, WORK, False)]
        assert await shown(deployed, task) == Shown("PENDING", 1)
    await worker.start()
    await holds(rabbitmq, WORK)
    assert await outbox(deployed) == [(1, WORK, False)] * 2
    await deployed.database.fetch("UPDATE queues SET paused = false RETURNING 1")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))


@pytest.mark.parametrize(
    ("point", "sent_again", "ready"),
    [
        pytest.param("worker.after_hand_back", [(1, WORK, False)], 0, id="after_hand_back"),
        pytest.param("worker.after_quiesce", [], 1, id="after_quiesce"),
    ],
)
async def test_what_found_no_slot_is_lost_to_nobody(
    deployed: Service, rabbitmq: Vhost, point: str, sent_again: list[tuple[int, str, bool]], ready: int
) -> None:
    worker = Crash(deployed, point, "worker")
    process = await worker.start(WORKER_CONCURRENCY="1")
    await deployed.start("relay")
    running = await hand_over(deployed, "work.gated")
    await starts(deployed, running, 1)
    behind = await hand_over(deployed, "work.do")
    await waits(deployed, behind)
    await holds(rabbitmq, WORK, unacked=1)
    if point == "worker.after_quiesce":
        process.signal(signal.SIGTERM)
    async with worker.there():
        await holds(rabbitmq, WORK, ready=ready, unacked=1 - ready)
        assert await outbox(deployed) == sent_again
        assert await shown(deployed, behind) == Shown("PENDING", 1)
    deployed.open_gate(2)
    await deployed.start("janitor")
    await worker.start()
    assert await deployed.all_ended(2) == {"COMPLETED": 2}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, running) == Shown("COMPLETED", 2, losses=1, starts=(1, 2))
    assert await shown(deployed, behind) == Shown("COMPLETED", 1, starts=(1,))


@pytest.mark.parametrize("point", ["worker.after_interrupt", "worker.before_sign_off"])
async def test_a_drain_that_has_recorded_its_interruptions_costs_no_loss(
    deployed: Service, rabbitmq: Vhost, point: str
) -> None:
    worker = Crash(deployed, point, "worker")
    process = await worker.start(DRAIN_SECONDS="0")
    task = await hand_over(deployed, "work.gated")
    await deployed.start("relay")
    await starts(deployed, task, 1)
    process.signal(signal.SIGTERM)
    async with worker.there():
        assert await shown(deployed, task) == Shown("PENDING", 2, starts=(1,))
        assert await deployed.database.fetch("SELECT count(*)::int FROM workers") == [(1,)]
    deployed.open_gate(2)
    await worker.start()
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 2, starts=(1, 2))
