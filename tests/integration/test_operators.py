"""What operators see of real processes: counters that move, and readiness that follows the work."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import Process, Service, service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.rabbitmq_node import RabbitmqNode
    from tests.support.servers import Database, OwnPostgres, Vhost

ROLES = ("gateway", "relay", "worker", "dead-letter", "janitor")
BEHIND_SECONDS = 40.0
"""By when every check has noticed: the longest limit is 16 seconds."""


class Operator:
    """Looks at the processes of a service, by role."""

    def __init__(self, running: Service, client: httpx.AsyncClient) -> None:
        self._running = running
        self._client = client

    async def get(self, role: str, path: str) -> httpx.Response:
        process = self._running.processes(role)[0]
        url = await eventually(lambda: operators_url(process), seconds=30)
        return await self._client.get(f"{url}{path}")

    async def value(self, role: str, name: str, **labels: str) -> float:
        text = (await self.get(role, "/metrics")).text
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return samples.get((f"baton_{name}", frozenset(labels.items())), 0.0)

    async def behind(self, role: str) -> list[str] | None:
        """What a role's process says is behind; None while nobody answers."""
        try:
            response = await self.get(role, "/health/ready")
        except httpx.TransportError:
            return None
        body: dict[str, Any] = response.json()
        behind = [check["check"] for check in body["checks"] if not check["ok"]]
        assert (response.status_code, body["ready"]) == ((503, False) if behind else (200, True))
        assert (await self.get(role, "/health/live")).status_code == 200
        return behind

    async def becomes(self, role: str, behind: list[str]) -> None:
        async def is_so() -> bool:
            return await self.behind(role) == behind

        await eventually(is_so, seconds=BEHIND_SECONDS)


def operators_url(process: Process) -> str:
    assert process.process.returncode is None, process.text()
    lines = [json.loads(line) for line in process.text().splitlines() if '"answering operators"' in line]
    return lines[0]["url"] if lines else ""


@asynccontextmanager
async def operated(
    database: Database, amqp_url: str, folder: Path
) -> AsyncIterator[tuple[Service, Operator]]:
    """One process per role, all of them ready."""
    async with service(database, amqp_url, folder) as running, httpx.AsyncClient(timeout=10.0) as client:
        for role in ROLES:
            await running.start(role)
        operator = Operator(running, client)
        for role in ROLES:
            await operator.becomes(role, [])
        yield running, operator


async def test_counters_move_with_what_becomes_of_tasks(
    postgres: Database, rabbitmq: Vhost, tmp_path: Path
) -> None:
    async with operated(postgres, rabbitmq.url, tmp_path) as (running, operator):
        await running.submit("work.do", {}, wait=20)
        await running.ended(await running.submit("work.fail", {}, max_retries=1))
        await running.ended(await running.submit("work.later", {"seconds": 0.1}, priority="HIGH"))
        waiting = await running.submit("work.do", {}, delay_seconds=60)
        busy = await running.submit("work.do", {"seconds": 60}, priority="LOW")
        await eventually(lambda: running.starts(busy))
        assert await operator.value("worker", "worker_slots_used") == 1
        for task in (waiting, busy):
            await running.client.delete(f"/api/v1/tasks/{task['id']}")
        await running.ended(busy)

        told = {
            ("gateway", "tasks_accepted_total", "queue=tasks.medium"): 3,
            ("gateway", "tasks_accepted_total", "queue=tasks.high"): 1,
            ("gateway", "cancel_requests_total", "status=cancelled"): 1,
            ("gateway", "cancel_requests_total", "status=in_progress"): 1,
            ("relay", "publications_total", "queue=tasks.medium.retry answer=confirmed"): 1,
            ("worker", "references_claimed_total", "queue=tasks.medium"): 3,
            ("worker", "runs_ended_total", "kind=work.do outcome=completed"): 1,
            ("worker", "runs_ended_total", "kind=work.do outcome=cancelled"): 1,
            ("worker", "runs_ended_total", "kind=work.fail outcome=retried"): 1,
            ("worker", "runs_ended_total", "kind=work.fail outcome=failed"): 1,
            ("worker", "runs_ended_total", "kind=work.later outcome=postponed"): 1,
            ("worker", "run_duration_seconds_count", "kind=work.fail"): 2,
            ("worker", "task_wait_seconds_count", "queue=tasks.high"): 2,
        }
        for (role, name, labels), count in told.items():
            found = await operator.value(role, name, **dict(label.split("=") for label in labels.split()))
            assert found == count, (role, name, labels)
        await eventually(lambda: operator.value("janitor", "queue_consumers", queue="tasks.dlq"), 15)
        await eventually(lambda: operator.value("janitor", "workers_alive", queue="tasks.low"), 15)
        # Claims, retries and the notice to the DLQ: a hand-over each.
        assert await operator.value("relay", "references_published_total") == 7
        assert await operator.value("worker", "task_wait_seconds_sum", queue="tasks.high") < 10


async def test_the_log_tells_what_a_process_is_and_under_which_id_it_works(
    postgres: Database, rabbitmq: Vhost, tmp_path: Path
) -> None:
    async with service(postgres, rabbitmq.url, tmp_path) as running:
        worker = await running.start("worker,relay", WORKER_QUEUES="tasks.low")
        await eventually(lambda: '"signed on"' in worker.text(), seconds=60)
        assert await worker.stop() == 0
        told = {line["event"]: line for line in map(json.loads, worker.text().splitlines())}
        assert told["started"]["roles"] == ["relay", "worker"]
        assert told["signed on"]["queues"] == ["tasks.low"]
        assert told["signed off"]["worker_id"] == told["signed on"]["worker_id"]


async def test_readiness_follows_broker_and_database(
    own_postgres: Callable[[], Awaitable[OwnPostgres]],
    own_rabbitmq: Callable[[], Awaitable[RabbitmqNode]],
    tmp_path: Path,
) -> None:
    postgres, rabbitmq = await own_postgres(), await own_rabbitmq()
    async with (
        rabbitmq.vhost() as vhost,
        postgres.database() as database,
        operated(database, vhost.url, tmp_path) as (running, operator),
    ):
        consumers = [f"consumer of tasks.{name}" for name in ("high", "medium", "low")]
        without_broker = {"relay": ["poll"], "worker": consumers, "dead-letter": ["consumer of tasks.dlq"]}
        without_database = {
            "gateway": ["database"],
            "relay": ["poll"],
            "worker": ["heartbeat"],
            "janitor": ["rescue"],
        }

        await rabbitmq.stop_app()
        for role in ROLES:
            await operator.becomes(role, without_broker.get(role, []))
        assert await operator.value("janitor", "queue_consumers", queue="tasks.dlq") == 0
        await rabbitmq.start_app()
        for role in ROLES:
            await operator.becomes(role, [])

        await postgres.kill()
        for role in ROLES:
            await operator.becomes(role, without_database.get(role, []))
        late = await running.start("relay", METRICS_PORT="0")
        url = await eventually(lambda: operators_url(late), seconds=30)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health/ready")).status_code == 503
        await late.stop()
        await postgres.start()
        for role in ROLES:
            await operator.becomes(role, [])

        assert [await process.stop() for role in ROLES for process in running.processes(role)[:1]] == [0] * 5
