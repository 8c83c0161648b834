"""The way between a program and its servers is cut, slow, lossy, or swallows what is said."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.chaos.harness.faults.fault import Bite, Fault

if TYPE_CHECKING:
    from tests.chaos.harness.faults.fault import Scene
    from tests.chaos.harness.proxy import Proxy

SWALLOW_SECONDS = 10.0
TO_POSTGRES = ("gateway", "relay", "worker", "janitor")
TO_RABBITMQ = ("relay", "worker", "dead-letter")


async def lose_commit_reply(scene: Scene) -> Bite:
    """Cut the connection after PostgreSQL has committed and before the program has heard of it."""
    return await _swallow(scene.program.postgres)


async def lose_confirm(scene: Scene) -> Bite:
    """Cut the connection after RabbitMQ has confirmed and before the relay has heard of it."""
    return await _swallow(scene.program.rabbitmq)


async def cut(scene: Scene) -> Bite:
    """Reset all connections of a program."""
    lost = scene.program.postgres.cut() + scene.program.rabbitmq.cut()
    return Bite(lost > 0, f"{lost} connections reset")


async def delay(scene: Scene) -> Bite:
    """Let everything a program says and hears take its time."""
    proxy = _one_of(scene)
    async with proxy.delayed(0.05, 0.5, scene.rng) as passed:
        await asyncio.sleep(scene.rng.uniform(4, 10))
    return Bite(passed.chunks > 0, f"{passed.chunks} chunks delayed")


async def loss(scene: Scene) -> Bite:
    """Lose one segment in five; each comes again after a while."""
    proxy = _one_of(scene)
    async with proxy.lossy(0.2, 0.4, scene.rng) as passed:
        await asyncio.sleep(scene.rng.uniform(4, 10))
    return Bite(passed.chunks > 0, f"{passed.chunks} chunks lost once")


async def black_hole_postgres(scene: Scene) -> Bite:
    """Let nothing pass between a program and PostgreSQL, and close nothing."""
    return await _black_hole(scene, scene.program.postgres)


async def black_hole_rabbitmq(scene: Scene) -> Bite:
    """Let nothing pass between a program and RabbitMQ, and close nothing."""
    return await _black_hole(scene, scene.program.rabbitmq)


async def _black_hole(scene: Scene, proxy: Proxy) -> Bite:
    seconds = scene.rng.uniform(4, 12)
    async with proxy.black_hole() as swallowed:
        await asyncio.sleep(seconds)
    said = f"{swallowed.bytes} bytes of {swallowed.connections} connections in {seconds:.1f} s"
    return Bite(swallowed.connections > 0, said)


async def _swallow(proxy: Proxy) -> Bite:
    swallowed = await proxy.swallow_reply(SWALLOW_SECONDS)
    if swallowed is None:
        return Bite(bit=False, proof="nothing was said")
    return Bite(bit=True, proof=f"{swallowed.what}, {swallowed.bytes} bytes, never arrived")


def _one_of(scene: Scene) -> Proxy:
    return scene.rng.choice([scene.program.postgres, scene.program.rabbitmq])


FAULTS = (
    Fault("lose-commit-reply", lose_commit_reply, TO_POSTGRES),
    Fault("lose-confirm", lose_confirm, ("relay",)),
    Fault("cut", cut, ("gateway", "relay", "worker", "dead-letter", "janitor")),
    Fault("delay", delay, ("relay", "worker")),
    Fault("loss", loss, ("relay", "worker")),
    Fault("black-hole-postgres", black_hole_postgres, TO_POSTGRES),
    Fault("black-hole-rabbitmq", black_hole_rabbitmq, TO_RABBITMQ),
)
