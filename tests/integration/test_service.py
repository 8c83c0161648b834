"""The whole path on real processes, PostgreSQL and RabbitMQ."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from pipeline.broker import Message
from pipeline.broker.rabbit import RabbitBroker
from tests.support.endpoint import answer, endpoint
from tests.support.service import Service, service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.servers import PostgresServer, RabbitmqServer, Vhost

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vhost(rabbitmq_server: RabbitmqServer) -> AsyncIterator[Vhost]:
    async with rabbitmq_server.vhost() as fresh:
        yield fresh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    postgres_server: PostgresServer, vhost: Vhost, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    async with (
        postgres_server.database() as database,
        service(database, vhost.url, tmp_path_factory.mktemp("service")) as started,
    ):
        await started.start_all()
        yield started


async def test_a_task_goes_from_post_to_completed(running: Service) -> None:
    task = await running.submit("work.do", {"note": "n"}, name="first", tags=["a"], wait=20)
    assert task["status"] == "COMPLETED"
    assert task["result"] == {"note": "n", "key": f"{task['id']}-0"}
    assert (task["dispatch"], task["attempt"], task["replay"]) == (1, 1, 0)


async def test_handlers_run_on_the_loop_in_threads_and_in_processes(running: Service) -> None:
    tasks = [await running.submit(f"work.{mode}", {}) for mode in ("do", "thread", "process")]
    assert [(await running.ended(task))["status"] for task in tasks] == ["COMPLETED"] * 3
    [worker] = running.processes("worker")
    on_loop, in_thread, in_process = (running.starts(task)[0][4] for task in tasks)
    assert on_loop == str(worker.pid)
    assert in_thread in worker.threads() - {on_loop}
    assert in_process not in worker.threads()


async def test_a_failing_task_is_retried_never_early_and_then_dead(running: Service) -> None:
    task = await running.submit("work.fail", {}, max_retries=2)
    ended = await running.ended(task)
    assert (ended["status"], ended["reason"], ended["attempt"]) == ("FAILED", "error", 3)
    assert [error["attempt"] for error in ended["errors"]] == [1, 2, 3]
    starts = [float(line[3]) for line in running.starts(task)]
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert [1.0 <= waits[0] <= 2.5, 2.0 <= waits[1] <= 3.5] == [True, True], waits
    answer = await running.client.get("/api/v1/dead-letters", params={"task_id": task["id"]})
    letters = answer.json()["items"]
    assert [(letter["task_id"], letter["reason"]) for letter in letters] == [(task["id"], "error")]


async def test_the_notice_of_a_dead_task_is_buried_and_leaves_the_dlq(running: Service, vhost: Vhost) -> None:
    async def notices() -> int:
        depth = (await vhost.queue_depths())["tasks.dlq"]
        return depth.ready + depth.unacked

    async def no_notices() -> bool:
        return not await notices()

    [gravedigger] = running.processes("dead-letter")
    await eventually(no_notices)
    gravedigger.signal(signal.SIGSTOP)
    task = await running.ended(await running.submit("work.permanent", {}))
    await eventually(notices)
    # The verdict has written the dead letter; without it, only the notice can bring it.
    dead_letter = [task["id"]]
    delete = "DELETE FROM dead_letters WHERE task_id = $1::text::uuid RETURNING 1"
    assert await running.database.fetch(delete, dead_letter) == [(1,)]
    gravedigger.signal(signal.SIGCONT)
    await eventually(no_notices)
    count = "SELECT count(*)::int FROM dead_letters WHERE task_id = $1::text::uuid"
    assert await running.database.fetch(count, dead_letter) == [(1,)]


async def test_no_retries_means_straight_to_the_dead_letters(running: Service) -> None:
    ended = await running.ended(await running.submit("work.fail", {}, max_retries=0))
    assert (ended["status"], ended["attempt"], len(running.starts(ended))) == ("FAILED", 1, 1)


async def test_a_permanent_failure_is_not_repeated(running: Service) -> None:
    ended = await running.ended(await running.submit("work.permanent", {}, max_retries=5))
    assert (ended["status"], len(running.starts(ended))) == ("FAILED", 1)


async def test_a_handler_may_ask_for_later_and_burns_no_attempt(running: Service) -> None:
    ended = await running.ended(await running.submit("work.later", {"seconds": 0.7}, max_retries=0))
    assert (ended["status"], ended["attempt"], ended["dispatch"]) == ("COMPLETED", 1, 2)
    first, second = (float(line[3]) for line in running.starts(ended))
    assert 0.7 <= second - first <= 2.5


async def timed_out(running: Service, kind: str, seconds: float, timeout_seconds: float) -> dict[str, Any]:
    """Let a task run out of time; its worker says so, long before the janitor would."""
    task = await running.submit(kind, {"seconds": seconds}, timeout_seconds=timeout_seconds, max_retries=0)
    ended = await running.ended(task)
    assert (ended["status"], ended["reason"]) == ("FAILED", "timeout")
    assert [error["message"] for error in ended["errors"]] == [f"not done after {timeout_seconds} s"]
    return ended


async def test_a_timeout_is_a_failed_attempt(running: Service) -> None:
    await timed_out(running, "work.do", seconds=60, timeout_seconds=0.3)


async def test_a_process_past_its_timeout_is_killed(running: Service) -> None:
    task = await timed_out(running, "work.process", seconds=60, timeout_seconds=1.5)
    [start] = running.starts(task)
    await eventually(lambda: not Path(f"/proc/{start[4]}").exists())


async def test_a_handler_that_ignores_its_cancellation_costs_no_verdict(running: Service) -> None:
    await timed_out(running, "work.stubborn", seconds=30, timeout_seconds=0.3)


async def test_a_task_waits_for_its_time(running: Service) -> None:
    task = await running.submit("work.do", {}, delay_seconds=1.2)
    ended = await running.ended(task)
    assert ended["started_at"] >= ended["due_at"]


async def test_a_waiting_task_is_cancelled_and_never_starts(running: Service) -> None:
    task = await running.submit("work.do", {}, delay_seconds=1.0)
    answer = await running.client.delete(f"/api/v1/tasks/{task['id']}")
    assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")
    after = await running.submit("work.do", {"note": "after"}, delay_seconds=1.5)
    await running.ended(after)
    assert (len(running.starts(task)), len(running.starts(after))) == (0, 1)


async def test_a_running_task_is_asked_to_stop(running: Service) -> None:
    task = await running.submit("work.do", {"seconds": 60})
    await eventually(lambda: running.starts(task))
    answer = await running.client.delete(f"/api/v1/tasks/{task['id']}")
    assert answer.status_code == 202
    assert (await running.ended(task))["status"] == "CANCELLED"


async def test_a_dead_task_is_replayed_and_the_same_replay_answers_the_same(running: Service) -> None:
    task = await running.ended(await running.submit("work.fail", {}, max_retries=0))
    path = f"/api/v1/tasks/{task['id']}/replay"
    body = {"reason": "the cause is mended", "dispatch": task["dispatch"]}
    first, second = [await running.client.post(path, json=body) for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200)
    ended = await running.ended(task)
    assert (ended["dispatch"], ended["replay"], ended["attempt"]) == (2, 1, 1)
    assert len(running.starts(task)) == 2
    refused = await running.client.post(path, json={"reason": "again", "dispatch": 77})
    assert refused.status_code == 409


async def test_a_completed_task_is_neither_cancelled_nor_replayed(running: Service) -> None:
    task = await running.submit("work.do", {}, wait=20)
    path = f"/api/v1/tasks/{task['id']}"
    assert (await running.client.delete(path)).status_code == 409
    assert (await running.client.post(f"{path}/replay", json={"reason": "why"})).status_code == 409


async def test_a_paused_queue_waits_until_it_is_resumed(running: Service) -> None:
    await running.database.fetch("UPDATE queues SET paused = true WHERE name = 'tasks.low' RETURNING 1")
    low = await running.submit("work.do", {"note": "low"}, priority="LOW")
    await running.submit("work.do", {"note": "high"}, priority="HIGH", wait=20)
    assert (await running.task(low))["status"] == "NEW"
    await running.database.fetch("UPDATE queues SET paused = false WHERE name = 'tasks.low' RETURNING 1")
    assert (await running.ended(low))["status"] == "COMPLETED"


async def test_an_unreadable_message_becomes_a_dead_letter(running: Service, vhost: Vhost) -> None:
    await running.submit("work.do", {}, wait=20)
    async with RabbitBroker(vhost.url, "test") as broker:
        await broker.ready()
        await broker.publish([Message("tasks.medium", b"\xff no message of ours")])

        async def unreadable() -> list[str]:
            items = (await running.client.get("/api/v1/dead-letters")).json()["items"]
            return [letter["reason"] for letter in items if letter["task_id"] is None]

        [reason] = await eventually(unreadable)
    assert reason.startswith("undecodable")
    assert (await running.submit("work.do", {}, wait=20))["status"] == "COMPLETED"


async def test_equal_keys_make_one_task(running: Service) -> None:
    body = {"kind": "work.do", "payload": {}}
    headers = {"Idempotency-Key": "order-1"}
    answers = [await running.client.post("/api/v1/tasks", json=body, headers=headers) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = await running.client.post(
        "/api/v1/tasks", json={"kind": "work.do", "payload": {"note": "x"}}, headers=headers
    )
    assert other.status_code == 422


async def test_an_endpoint_that_fails_twice_is_called_again_with_the_same_key(running: Service) -> None:
    async with endpoint() as there:
        there.answers = [answer(500), answer(500), answer(200, b"done")]
        ended = await running.ended(
            await running.submit("http.request", {"url": f"{there.url}/order", "body": {"n": 1}})
        )
    assert (ended["status"], ended["attempt"], ended["result"]["body"]) == ("COMPLETED", 3, "done")
    assert [error["message"] for error in ended["errors"]] == ["the endpoint answered 500"] * 2
    assert [got["idempotency-key"] for got in there.received] == [f"{ended['id']}-0"] * 3
    assert {got.body for got in there.received} == {b'{"n":1}'}


async def test_an_endpoint_that_is_busy_is_called_when_it_says_and_burns_no_attempt(running: Service) -> None:
    async with endpoint() as there:
        there.answers = [answer(429, b"", "Retry-After: 1"), answer(204)]
        ended = await running.ended(await running.submit("http.request", {"url": there.url}, max_retries=0))
    assert (ended["status"], ended["attempt"], ended["dispatch"]) == ("COMPLETED", 1, 2)
