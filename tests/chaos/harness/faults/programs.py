"""Processes are killed, frozen, asked to end, and given a wrong clock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.chaos.harness.faults.fault import LEASE_SECONDS, Bite, Fault
from tests.support.faketime import wall_clock_off_by

if TYPE_CHECKING:
    from tests.chaos.harness.deployment import Program
    from tests.chaos.harness.faults.fault import Scene

ANY = ("gateway", "relay", "worker", "dead-letter", "janitor")
HOUR_SECONDS = 3600.0


async def kill(scene: Scene) -> Bite:
    """End a process by kill -9."""
    return await _kill(scene.program)


async def kill_workers(scene: Scene) -> Bite:
    """End all workers at once."""
    bites = await asyncio.gather(*(_kill(worker) for worker in scene.deployment.workers()))
    return Bite(all(bite.bit for bite in bites), "; ".join(bite.proof for bite in bites))


async def freeze_beyond_lease(scene: Scene) -> Bite:
    """Stop a process for longer than a lease; when it goes on, it is the past that speaks."""
    return await _freeze(scene, scene.rng.uniform(1.4, 3.0) * LEASE_SECONDS)


async def freeze(scene: Scene) -> Bite:
    """Stop a process for less than a lease."""
    return await _freeze(scene, scene.rng.uniform(0.3, 0.7) * LEASE_SECONDS)


async def terminate(scene: Scene) -> Bite:
    """Ask a process to end, as a deployment does."""
    program = scene.program
    pid = program.terminate()
    if pid is None:
        return Bite(bit=False, proof="it did not run")
    code = await program.gone(pid, 20)
    return Bite(code is not None, f"pid {pid} ended with {code}")


async def wrong_clock(scene: Scene) -> Bite:
    """Let a process run with a wall clock that is an hour off, for a while."""
    program = scene.program
    ahead_seconds = scene.rng.choice([HOUR_SECONDS, -HOUR_SECONDS])
    program.extra = await asyncio.to_thread(wall_clock_off_by, ahead_seconds)
    killed = await _kill(program)
    await asyncio.sleep(scene.rng.uniform(8, 15))
    pid = program.pid
    program.extra = {}
    again = await _kill(program)
    return Bite(killed.bit and again.bit, f"pid {pid} ran {ahead_seconds:+.0f} s off; {again.proof}")


async def _kill(program: Program) -> Bite:
    pid = program.kill()
    if pid is None:
        return Bite(bit=False, proof=f"{program.name} did not run")
    code = await program.gone(pid, 5)
    return Bite(code is not None, f"{program.name}, pid {pid}, ended with {code}")


async def _freeze(scene: Scene, seconds: float) -> Bite:
    program = scene.program
    pid = program.freeze()
    if pid is None:
        return Bite(bit=False, proof="it did not run")
    try:
        await asyncio.sleep(seconds)
    finally:
        lived = program.pid == pid
        program.thaw(pid)
    return Bite(lived, f"pid {pid} stood still for {seconds:.1f} s")


FAULTS = (
    Fault("kill", kill, ANY),
    Fault("kill-workers", kill_workers, (), frozenset({"worker-1", "worker-2", "worker-3"})),
    Fault("freeze-beyond-lease", freeze_beyond_lease, ANY),
    Fault("freeze", freeze, ANY),
    Fault("terminate", terminate, ANY),
    Fault("wrong-clock", wrong_clock, ANY),
)
