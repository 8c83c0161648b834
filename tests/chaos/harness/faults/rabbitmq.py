"""RabbitMQ drops its connections, stops, dies, runs out of memory, and forgets."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.chaos.harness.faults.fault import Bite, Fault
from tests.support.servers import RabbitmqError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.chaos.harness.faults.fault import Scene
    from tests.support.servers import Depth

ALARM_SECONDS = 8.0
FULL_SECONDS = 15.0
WORK_QUEUES = ("tasks.high", "tasks.medium", "tasks.low")


async def close_connections(scene: Scene) -> Bite:
    """Close every connection of the programs, from the broker's side."""
    before = _connections(scene)
    await scene.deployment.rabbitmq.ctl("close_all_connections", "chaos")
    return Bite(before > 0, f"{before} connections closed")


async def stop_app(scene: Scene) -> Bite:
    """Stop the broker in its Erlang machine, and start it again."""
    before = _connections(scene)
    await scene.deployment.rabbitmq.stop_app()
    seconds = scene.rng.uniform(3, 12)
    await asyncio.sleep(seconds)
    left = _connections(scene)
    await scene.deployment.rabbitmq.start_app()
    return Bite(before > 0, f"away for {seconds:.1f} s; {before} connections before, {left} during")


async def kill(scene: Scene) -> Bite:
    """End the broker by kill -9 and start it again."""
    rabbitmq = scene.deployment.rabbitmq
    # A queue that is lost with its declaration is a fault of its own, which the guarantees name; what another
    # fault has deleted is declared again within a moment.
    await _until_declared(scene)
    before = _connections(scene)
    await rabbitmq.write_down()
    rabbitmq.kill()
    await asyncio.sleep(scene.rng.uniform(0, 5))
    await rabbitmq.start()
    return Bite(before > 0, f"{before} connections before it")


async def _until_declared(scene: Scene) -> None:
    async for ready in _ready_messages(scene):
        if ready.keys() == set(WORK_QUEUES):
            return


async def memory_alarm(scene: Scene) -> Bite:
    """Let the broker think that it is out of memory: it reads nothing from who publishes."""
    rabbitmq = scene.deployment.rabbitmq
    # What `rabbitmqctl set_vm_memory_high_watermark` asks for, without the seconds it takes to start.
    await rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        await asyncio.sleep(ALARM_SECONDS)
        alarms = await rabbitmq.evaluate("rabbit_alarm:get_alarms().")
    finally:
        await rabbitmq.evaluate('vm_memory_monitor:set_vm_memory_high_watermark({absolute, "1GB"}).')
    return Bite("memory" in alarms, f"alarms {' '.join(alarms.split())[:80]}")


async def purge_queue(scene: Scene) -> Bite:
    """Throw away what waits in a queue."""
    return await _lose(scene, "purge_queue")


async def delete_queue(scene: Scene) -> Bite:
    """Delete a queue with what waits in it, and the consumers it has."""
    return await _lose(scene, "delete_queue")


async def _lose(scene: Scene, command: str) -> Bite:
    """Freeze the workers until something waits in a queue, lose that, and let them go on."""
    deployment = scene.deployment
    frozen = {worker.freeze(): worker for worker in deployment.workers()}
    try:
        queue, ready = await _fullest(scene)
        said = f"{ready} messages of {queue}"
        if ready:
            await deployment.rabbitmq.ctl(command, queue)
    finally:
        for pid, worker in frozen.items():
            if pid is not None:
                worker.thaw(pid)
    return Bite(ready > 0, said)


async def _fullest(scene: Scene) -> tuple[str, int]:
    async for ready in _ready_messages(scene):
        full = [queue for queue, count in ready.items() if count]
        if full:
            chosen = scene.rng.choice(sorted(full))
            return chosen, ready[chosen]
    return "no queue", 0


async def _ready_messages(scene: Scene) -> AsyncIterator[dict[str, int]]:
    """Count what is ready in the work queues there are, five times a second until FULL_SECONDS are over."""
    for _ in range(round(FULL_SECONDS / 0.2)):
        depths: dict[str, Depth] = {}
        with suppress(RabbitmqError):
            depths = await scene.deployment.rabbitmq.queue_depths()
        yield {queue: depth.ready for queue, depth in depths.items() if queue in WORK_QUEUES}
        await asyncio.sleep(0.2)


def _connections(scene: Scene) -> int:
    return sum(program.rabbitmq.connections for program in scene.deployment.programs.values())


ALONE = frozenset({"rabbitmq"})
ALONE_WITH_WORKERS = ALONE | {"worker-1", "worker-2", "worker-3"}
FAULTS = (
    Fault("close-connections", close_connections, (), ALONE),
    Fault("stop-app", stop_app, (), ALONE),
    Fault("kill-rabbitmq", kill, (), ALONE),
    Fault("memory-alarm", memory_alarm, (), ALONE),
    Fault("purge-queue", purge_queue, (), ALONE_WITH_WORKERS),
    Fault("delete-queue", delete_queue, (), ALONE_WITH_WORKERS),
)
