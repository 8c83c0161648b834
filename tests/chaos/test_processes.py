"""Processes of the service die, hang and are replaced; every task still ends, once."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.service import Service


async def test_a_killed_worker_loses_nothing(deployed: Service) -> None:
    doomed = await deployed.start("worker")
    await deployed.start("gateway,relay,janitor")
    tasks = [await deployed.submit("work.do", {"seconds": 0.5}) for _ in range(100)]
    await eventually(lambda: len(deployed.effects()) > 20)
    await doomed.kill()
    await deployed.start("worker")
    assert await deployed.all_ended(len(tasks)) == {"COMPLETED": len(tasks)}
    await deployed.check()
    lost = await deployed.database.fetch("SELECT count(*)::int FROM tasks WHERE losses = 1 AND dispatch = 2")
    assert lost[0][0] > 0


async def test_a_killed_relay_loses_nothing(deployed: Service) -> None:
    # Without a janitor: it would send again what a relay has lost.
    await deployed.start("gateway,worker")
    tasks: list[dict[str, Any]] = []
    for _ in range(2):
        tasks += await asyncio.gather(*(deployed.submit("work.do", {}) for _ in range(300)))
        started = len(deployed.effects())
        relays = [await deployed.start("relay", OUTBOX_BATCH_SIZE="5") for _ in range(2)]
        await eventually(lambda: len(deployed.effects()) > started, seconds=60)  # noqa: B023 - awaited here
        for relay in relays:
            await relay.kill()
        [(left,)] = await deployed.database.fetch("SELECT count(*)::int FROM outbox")
        assert left, "they were killed when all was done"
    # The lease of a killed relay has to run out, or nothing would be left to show.
    await deployed.database.fetch("UPDATE outbox SET leased_until = now() RETURNING 1")
    await deployed.start("relay")
    assert await deployed.all_ended(len(tasks)) == {"COMPLETED": len(tasks)}
    await deployed.check()


async def test_a_frozen_worker_does_not_write_when_it_thaws(deployed: Service) -> None:
    frozen = await deployed.start("worker", WORKER_CONCURRENCY="1", WORKER_PREFETCH="1")
    await deployed.start("gateway,relay,janitor")
    task = await deployed.submit("work.gated", {})
    await eventually(lambda: deployed.starts(task), seconds=30)
    # The broker still delivers to a frozen process, as many messages as it may hold: now it holds them.
    behind = await deployed.submit("work.do", {})

    async def full() -> bool:
        return await deployed.database.fetch("SELECT unclaimed FROM workers") == [(1,)]

    await eventually(full)
    frozen.signal(signal.SIGSTOP)
    await deployed.silence_workers()
    await deployed.start("worker")
    await eventually(lambda: len(deployed.starts(task)) == 2, seconds=30)
    deployed.open_gate(1)
    frozen.signal(signal.SIGCONT)
    await eventually(lambda: "another dispatch has taken over" in frozen.text())
    assert (await deployed.task(task))["status"] == "IN_PROGRESS"
    deployed.open_gate(2)
    ended = await deployed.ended(task)
    assert (ended["status"], ended["dispatch"], ended["losses"]) == ("COMPLETED", 2, 1)
    assert (await deployed.ended(behind))["status"] == "COMPLETED"
    await deployed.check()


async def test_a_drained_worker_hands_back_and_burns_no_attempt(deployed: Service) -> None:
    # Without a janitor: it would send again what the worker has not handed back.
    first = await deployed.start("worker", WORKER_CONCURRENCY="10", DRAIN_SECONDS="1")
    await deployed.start("gateway,relay")
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
    old = await deployed.start("worker", HANDLERS="")
    await deployed.start("gateway,relay")
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
    await deployed.start("worker")
    await deployed.start("gateway,relay,janitor")
    innocent = [await deployed.submit("work.do", {"seconds": 0.5}) for _ in range(5)]
    guilty = await deployed.submit("work.kill_worker", {})

    async def replaced() -> bool:
        for process in deployed.processes("worker"):
            if process.process.returncode is None:
                break
        else:
            await deployed.silence_workers()
            await deployed.start("worker")
        return bool((await deployed.task(guilty))["finished_at"])

    await eventually(replaced, seconds=60)
    ended = await deployed.task(guilty)
    assert (ended["status"], ended["reason"], ended["losses"]) == ("FAILED", "kills-worker", 2)
    for task in innocent:
        assert (await deployed.ended(task))["status"] == "COMPLETED"
    await deployed.check()


async def test_the_second_signal_ends_a_process_at_once(deployed: Service) -> None:
    worker = await deployed.start("worker", DRAIN_SECONDS="60")
    await deployed.start("gateway,relay")
    task = await deployed.submit("work.do", {"seconds": 60})
    await eventually(lambda: deployed.starts(task))
    worker.signal(signal.SIGTERM)
    await eventually(lambda: "draining" in worker.text())
    worker.signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await worker.process.wait() != 0
