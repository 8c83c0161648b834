"""A gateway dies at a named point: the client repeats what was not answered, and it is done once.

The points are those of tests/chaos/harness/crash_points.py; the other roles have files beside this one.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.chaos.harness.crash import PATIENCE_SECONDS, Crash, Shown, at_rest, hand_over, outbox, shown
from tests.chaos.harness.crash_points import POINTS
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.servers import Vhost
    from tests.support.service import Service

ROOT = Path(__file__).parents[2]
TASKS = "/api/v1/tasks"


def test_every_point_has_a_test_and_a_row_in_the_guarantees() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_crash_points*.py"))
    text = (ROOT / "documents" / "guarantees.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+\.\w+)` \|.*\| (.*) \|$", text, re.MULTILINE))
    assert list(rows) == list(POINTS)
    assert [point for point in POINTS if f'"{point}"' not in tests] == []
    named = {name for test in rows.values() for name in re.findall(r"`(\w+)`", test)}
    assert named == set(re.findall(r"^async def (test_\w+)\(", tests, re.MULTILINE))


@pytest.mark.parametrize("key", [{"Idempotency-Key": "once"}, {}], ids=["key", "no key"])
@pytest.mark.parametrize(
    ("point", "written"), [("gateway.before_submit", 0), ("gateway.after_submit", 1)], ids=["before", "after"]
)
async def test_a_submit_without_answer_is_repeated(
    deployed: Service, rabbitmq: Vhost, point: str, written: int, key: dict[str, str]
) -> None:
    async def submit() -> httpx.Response:
        return await deployed.client.post(TASKS, json={"kind": "work.do", "payload": {}}, headers=key)

    gateway = Crash(deployed, point, "gateway")
    await gateway.start()
    asked = asyncio.create_task(submit())
    async with gateway.there():
        assert not asked.done()
        assert await deployed.counts() == ({"NEW": 1} if written else {})
        assert len(await outbox(deployed)) == written
    with pytest.raises(httpx.TransportError):
        await asked
    await gateway.start()
    answer = await submit()
    assert answer.status_code == 201
    assert ("idempotency-replayed" in answer.headers) == bool(written and key)
    # Who names no key cannot be told from another client.
    tasks = 1 if key else written + 1
    assert await deployed.counts() == {"NEW": tasks}
    await deployed.start("relay,worker")
    assert await deployed.all_ended(tasks) == {"COMPLETED": tasks}
    assert deployed.starts(answer.json())
    await at_rest(deployed, rabbitmq)


async def test_a_cancel_without_answer_is_repeated(deployed: Service, rabbitmq: Vhost) -> None:
    gateway = Crash(deployed, "gateway.after_cancel", "gateway")
    await gateway.start()
    task = await hand_over(deployed, "work.do")
    asked = asyncio.create_task(deployed.client.delete(f"{TASKS}/{task['id']}"))
    async with gateway.there():
        assert not asked.done()
        assert await shown(deployed, task) == Shown("CANCELLED", 1)
    with pytest.raises(httpx.TransportError):
        await asked
    await gateway.start()
    answer = await deployed.client.delete(f"{TASKS}/{task['id']}")
    assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")
    await deployed.start("relay,worker")
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("CANCELLED", 1)


async def test_a_running_task_ends_though_the_gateway_that_was_asked_is_gone(
    deployed: Service, rabbitmq: Vhost
) -> None:
    gateway = Crash(deployed, "gateway.after_cancel", "gateway")
    await gateway.start()
    task = await hand_over(deployed, "work.gated")
    await deployed.start("relay,worker")
    await eventually(lambda: deployed.starts(task), seconds=PATIENCE_SECONDS)
    asked = asyncio.create_task(deployed.client.delete(f"{TASKS}/{task['id']}"))
    async with gateway.there():
        pass
    with pytest.raises(httpx.TransportError):
        await asked
    assert await deployed.all_ended(1) == {"CANCELLED": 1}
    await gateway.start()
    assert (await deployed.client.delete(f"{TASKS}/{task['id']}")).status_code == 200
    await at_rest(deployed, rabbitmq)
    assert await shown(deployed, task) == Shown("CANCELLED", 1, starts=(1,))


async def test_a_replay_without_answer_is_repeated(deployed: Service, rabbitmq: Vhost) -> None:
    gateway = Crash(deployed, "gateway.after_replay", "gateway")
    await gateway.start()
    task = await hand_over(deployed, "work.permanent")
    await deployed.start("relay,worker")
    assert await deployed.all_ended(1) == {"FAILED": 1}

    async def replay() -> httpx.Response:
        body = {"dispatch": 1, "reason": "mended"}
        return await deployed.client.post(f"{TASKS}/{task['id']}/replay", json=body)

    asked = asyncio.create_task(replay())
    async with gateway.there():
        assert not asked.done()
        assert (await shown(deployed, task)).dispatch == 2
    with pytest.raises(httpx.TransportError):
        await asked
    await gateway.start()
    assert (await replay()).status_code == 200
    assert await deployed.all_ended(1) == {"FAILED": 1}
    assert await shown(deployed, task) == Shown("FAILED", 2, starts=(1, 2))
    assert await deployed.database.fetch("SELECT dispatch FROM audit") == [(1,)]
    assert await deployed.database.fetch("SELECT dispatch FROM dead_letters ORDER BY id") == [(1,), (2,)]
    await at_rest(deployed, rabbitmq, notices=2)
