"""The dead-letter role, the janitor and a migration die at a named point; the next one goes on from there."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from pipeline.broker import Message
from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.topology import DLQ
from pipeline.references import encode
from storage.ledger import PostgresLedger
from storage.model import Reference
from tests.chaos.harness.crash import Crash, Shown, at_rest, hand_over, holds, outbox, shown
from tests.support.builders import beat, submission, task_id
from tests.support.service import Service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.support.servers import Database, Vhost

WORK = "tasks.medium"
OLD_SECONDS = 30 * 86_400.0


async def publish(rabbitmq: Vhost, body: bytes) -> None:
    """Put a message into the DLQ."""
    async with RabbitBroker(rabbitmq.url, "test") as broker:
        await broker.declare(DLQ)
        await broker.publish([Message(DLQ, body)])


async def count(service: Service, table: str) -> int:
    [(rows,)] = await service.database.fetch(f"SELECT count(*)::int FROM {table}")
    return int(rows)


async def test_a_dead_task_is_buried_once(deployed: Service, rabbitmq: Vhost) -> None:
    task = await hand_over(deployed, "work.permanent")
    await deployed.start("relay,worker")
    grave = Crash(deployed, "dead-letter.after_bury", "dead-letter")
    await grave.start()
    async with grave.there():
        await holds(rabbitmq, DLQ, unacked=1)
        assert await count(deployed, "dead_letters") == 1
    await holds(rabbitmq, DLQ, ready=1)
    await grave.start()
    await at_rest(deployed, rabbitmq)
    assert await count(deployed, "dead_letters") == 1
    assert await shown(deployed, task) == Shown("FAILED", 1, starts=(1,))


async def test_a_waiting_task_found_in_the_dlq_twice_starts_once(deployed: Service, rabbitmq: Vhost) -> None:
    task = await hand_over(deployed, "work.do")
    await publish(rabbitmq, encode([Reference(uuid.UUID(task["id"]), 1)]))
    grave = Crash(deployed, "dead-letter.after_bury", "dead-letter")
    await grave.start()
    async with grave.there():
        await holds(rabbitmq, DLQ, unacked=1)
        assert await outbox(deployed) == [(1, WORK, False)] * 2
    await grave.start()
    await holds(rabbitmq, DLQ)
    assert await outbox(deployed) == [(1, WORK, False)] * 3
    await deployed.start("relay,worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))


async def test_what_nobody_can_read_is_kept_before_its_message_goes(
    deployed: Service, rabbitmq: Vhost
) -> None:
    await publish(rabbitmq, b"no reference")
    grave = Crash(deployed, "dead-letter.after_bury_undecodable", "dead-letter")
    await grave.start()
    async with grave.there():
        await holds(rabbitmq, DLQ, unacked=1)
        assert await count(deployed, "dead_letters") == 1
    await grave.start()
    await at_rest(deployed, rabbitmq)
    kept = await deployed.database.fetch("SELECT convert_from(body, 'UTF8') FROM dead_letters")
    # It has no name by which the second could be known for the first; evidence kept twice harms nobody.
    assert kept == [("no reference",)] * 2


async def in_progress(service: Service) -> dict[str, Any]:
    """Let a worker claim a task and lose its connection."""
    task = await hand_over(service, "work.do", max_retries=0)
    async with PostgresLedger(service.database.address) as ledger:
        worker = beat()
        await ledger.workers.beat(worker)
        [_run] = await ledger.runs.claim([Reference(uuid.UUID(task["id"]), 1)], worker.worker_id, ["work.do"])
    return task


@pytest.mark.parametrize(
    ("point", "moved", "sent"),
    [
        ("janitor.after_declare_dead", Shown("IN_PROGRESS", 1), [1]),
        ("janitor.after_declare_disconnected_dead", Shown("IN_PROGRESS", 1), [1]),
        ("janitor.after_rescue", Shown("PENDING", 2, losses=1), [1, 2]),
    ],
)
async def test_a_rescue_is_finished_by_the_next_janitor(
    deployed: Service, rabbitmq: Vhost, point: str, moved: Shown, sent: list[int]
) -> None:
    task = await in_progress(deployed)
    if point == "janitor.after_declare_dead":
        await deployed.silence_workers()
    janitor = Crash(deployed, point, "janitor")
    await janitor.start()
    async with janitor.there():
        assert await deployed.database.fetch("SELECT dead_at IS NOT NULL FROM workers") == [(True,)]
        assert await shown(deployed, task) == moved
        assert [dispatch for dispatch, _, _ in await outbox(deployed)] == sent
    await janitor.start()
    await deployed.start("relay,worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 2, losses=1, starts=(2,))


async def test_what_the_broker_lost_is_sent_again_under_its_own_dispatch(
    deployed: Service, rabbitmq: Vhost
) -> None:
    task = await hand_over(deployed, "work.do")
    async with PostgresLedger(deployed.database.address) as ledger:
        await ledger.outbox.settle([(row.id, 0.0) for row in await ledger.outbox.poll(1, 30.0)])
    await deployed.database.fetch("UPDATE tasks SET queued_at = queued_at - interval '1 minute' RETURNING 1")
    janitor = Crash(deployed, "janitor.after_resend", "janitor")
    await janitor.start()
    async with janitor.there():
        assert await outbox(deployed) == [(1, WORK, False)]
        assert await shown(deployed, task) == Shown("PENDING", 1)
    await janitor.start()
    await deployed.start("relay,worker")
    assert await deployed.all_ended(1) == {"COMPLETED": 1}
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("COMPLETED", 1, starts=(1,))


async def test_a_prune_that_was_cut_short_leaves_whole_tasks_and_goes_on(deployed: Service) -> None:
    old = [submission(id=task_id(age_seconds=OLD_SECONDS)) for _ in range(600)]
    young = submission()
    async with PostgresLedger(deployed.database.address) as ledger:
        await ledger.submissions.submit([*old, young])
    await deployed.database.fetch(
        """
        UPDATE tasks SET status = 5, finished_at = CASE WHEN id = $1::text::uuid THEN now()
        ELSE now() - interval '20 days' END RETURNING 1""",
        [str(young.id)],
    )
    janitor = Crash(deployed, "janitor.after_prune", "janitor")
    await janitor.start()
    tables = ("tasks", "payloads", "outbox")
    async with janitor.there():
        assert [await count(deployed, table) for table in tables] == [101, 101, 101]
        assert await count(deployed, "tasks t JOIN payloads p ON p.task_id = t.id") == 101
        assert await count(deployed, "tasks t JOIN outbox o ON o.task_id = t.id") == 101
    await janitor.start()

    async def pruned() -> bool:
        return [await count(deployed, table) for table in tables] == [1, 1, 1]

    await eventually(pruned, seconds=30)
    assert await deployed.counts() == {"CANCELLED": 1}


async def test_a_migration_that_was_cut_short_goes_on_with_the_next_one(
    postgres: Database, tmp_path: Path
) -> None:
    service = Service(postgres, "amqp://nobody", tmp_path)
    try:
        migrating = Crash(service, "migrate.after_migration", "janitor", command="migrate")
        process = await migrating.start()
        names = "SELECT name FROM schema_migrations ORDER BY name"
        async with migrating.there():
            assert await service.database.fetch(names) == [("0001_ledger",)]
        process = await migrating.start()
        assert await process.process.wait() == 0, process.text()
        assert "0001_ledger" not in process.text()
        applied = await service.database.fetch(names)
        assert len(applied) > 1
        assert await service.counts() == {}
        process = await migrating.start()
        assert await process.process.wait() == 0, process.text()
        assert await service.database.fetch(names) == applied
    finally:
        await service.close()
