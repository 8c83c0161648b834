"""Processes of the service die, hang and are replaced; every task still ends, once."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.service import Service


async def test_a_killed_worker_loses_nothing(deployed: Service) -> None:
    for role in ("gateway", "relay", "janitor"):
        await deployed.start(role)
    doomed = await deployed.start("worker")
    tasks = [await deployed.submit("work.do", {"seconds": 0.5}) for _ in range(100)]
    await eventually(lambda: len(deployed.effects()) > 20)
    await doomed.kill()
    await deployed.start("worker")
    assert await deployed.all_ended(len(tasks)) == {"COMPLETED": len(tasks)}
    await deployed.check()
    lost = await deployed.database.fetch("SELECT count(*)::int FROM tasks WHERE losses = 1 AND dispatch = 2")
    assert lost[0][0] > 0


async def test_a_killed_relay_loses_nothing(deployed: Service) -> None:
    for role in ("gateway", "worker", "janitor"):
        await deployed.start(role)
    tasks = [await deployed.submit("work.do", {}) for _ in range(50)]
    for _ in range(3):
        relay = await deployed.start("relay", OUTBOX_BATCH_SIZE="5")
        tasks += [await deployed.submit("work.do", {}) for _ in range(50)]
        await relay.kill()
    # The lease of a killed relay has to run out, or nothing would be left to show.
    await deployed.database.fetch("UPDATE outbox SET leased_until = now() RETURNING 1")
    await deployed.start("relay")
    assert await deployed.all_ended(len(tasks)) == {"COMPLETED": len(tasks)}
    await deployed.check()


async def test_a_frozen_worker_does_not_write_when_it_thaws(deployed: Service) -> None:
    for role in ("gateway", "relay", "janitor"):
        await deployed.start(role)
    frozen = await deployed.start("worker")
    task = await deployed.submit("work.do", {"seconds": 1.0})
    await eventually(lambda: deployed.starts(task))
    frozen.signal(signal.SIGSTOP)
    await deployed.start("worker")
    ended = await deployed.ended(task)
    assert (ended["status"], ended["dispatch"], ended["losses"]) == ("COMPLETED", 2, 1)
    frozen.signal(signal.SIGCONT)
    await eventually(lambda: "taken over" in frozen.text() or "declared dead" in frozen.text())
    assert (await deployed.task(task))["finished_at"] == ended["finished_at"]
    later = await deployed.submit("work.do", {}, wait=20)
    assert later["status"] == "COMPLETED"
    await deployed.check()


async def test_a_drained_worker_hands_back_and_burns_no_attempt(deployed: Service) -> None:
    for role in ("gateway", "relay", "janitor"):
        await deployed.start(role)
    first = await deployed.start("worker", WORKER_CONCURRENCY="10", DRAIN_SECONDS="1")
    quick = [await deployed.submit("work.do", {"seconds": 0.3}) for _ in range(30)]
    slow = [await deployed.submit("work.do", {"seconds": 4}) for _ in range(10)]
    await eventually(lambda: any(deployed.starts(task) for task in slow))
    assert await first.stop() == 0
    await deployed.start("worker")
    total = len(quick) + len(slow)
    assert await deployed.all_ended(total) == {"COMPLETED": total}
    await deployed.check()
    burnt = await deployed.database.fetch("SELECT count(*)::int FROM tasks WHERE attempt > 1 OR losses > 0")
    assert burnt == [(0,)]
    assert await deployed.database.fetch("SELECT max(dispatch) FROM tasks") == [(2,)]


async def test_two_handler_sets_in_a_rolling_deploy_fail_nothing(deployed: Service) -> None:
    for role in ("gateway", "relay", "janitor"):
        await deployed.start(role)
    old = await deployed.start("worker", HANDLERS="")
    tasks = [await deployed.submit("work.do", {}) for _ in range(20)]
    known = [await deployed.submit("echo", {}) for _ in range(20)]

    async def parked() -> bool:
        query = "SELECT count(*)::int FROM outbox WHERE available_at > now() + interval '5 seconds'"
        return await deployed.database.fetch(query) == [(len(tasks),)]

    await eventually(parked)
    await deployed.start("worker")
    # Nobody waits thirty seconds in a test: what was parked is due now.
    await deployed.database.fetch("UPDATE outbox SET available_at = now() RETURNING 1")
    assert await old.stop() == 0
    total = len(tasks) + len(known)
    assert await deployed.all_ended(total) == {"COMPLETED": total}
    await deployed.check()


async def test_the_task_that_kills_workers_is_found_and_its_neighbours_complete(deployed: Service) -> None:
    for role in ("gateway", "relay", "janitor"):
        await deployed.start(role)
    await deployed.start("worker")
    innocent = [await deployed.submit("work.do", {"seconds": 0.5}) for _ in range(5)]
    guilty = await deployed.submit("work.kill_worker", {})

    async def replaced() -> bool:
        for process in deployed.processes("worker"):
            if process.process.returncode is None:
                break
        else:
            await deployed.start("worker")
        return bool((await deployed.task(guilty))["finished_at"])

    await eventually(replaced, seconds=60)
    ended = await deployed.task(guilty)
    assert (ended["status"], ended["reason"]) == ("FAILED", "kills-worker")
    for task in innocent:
        assert (await deployed.ended(task))["status"] == "COMPLETED"
    await deployed.check()


async def test_the_second_signal_ends_a_process_at_once(deployed: Service) -> None:
    for role in ("gateway", "relay"):
        await deployed.start(role)
    worker = await deployed.start("worker", DRAIN_SECONDS="60")
    task = await deployed.submit("work.do", {"seconds": 60})
    await eventually(lambda: deployed.starts(task))
    worker.signal(signal.SIGTERM)
    await eventually(lambda: "draining" in worker.text())
    worker.signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await worker.process.wait() != 0
