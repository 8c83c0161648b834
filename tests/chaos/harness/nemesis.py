"""Draws faults from the seed, lets them happen while the clients work, and writes down whether they bit."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import StorageError
from tests.chaos.harness.events import FaultBegan, FaultEnded
from tests.chaos.harness.faults import ALL, Bite, Fault, Scene
from tests.chaos.harness.faults.postgres import TABLES
from tests.chaos.harness.history import now

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from tests.chaos.harness.deployment import Deployment, Part
    from tests.chaos.harness.history import Log

FIRST_SECONDS = 5.0
CLOSE_SECONDS = (0.3, 2.0)
APART_SECONDS = (9.0, 17.0)
CLOSE_SHARE = 0.45
"""So many faults begin while the one before is likely still there."""

SAMPLE_SECONDS = 0.5


class Planned(NamedTuple):
    """A fault, what it happens to, and when it begins after the load did."""

    at_seconds: float
    fault: Fault
    target: str = ""


def plan(seed: int, rng: random.Random, parts: Sequence[Part], seconds: float) -> list[Planned]:
    """Draw the faults of a run: every class in turn, in an order of its own in each round."""
    planned: list[Planned] = []
    at_seconds = FIRST_SECONDS
    faults = _rounds(rng)
    while at_seconds < seconds:
        fault = next(faults)
        planned.append(Planned(at_seconds, fault, _target(fault, seed + len(planned), rng, parts)))
        gap_seconds = CLOSE_SECONDS if rng.random() < CLOSE_SHARE else APART_SECONDS
        at_seconds += rng.uniform(*gap_seconds)
    return planned


def _rounds(rng: random.Random) -> Iterator[Fault]:
    while True:
        yield from rng.sample(ALL, len(ALL))


def _target(fault: Fault, number: int, rng: random.Random, parts: Sequence[Part]) -> str:
    if fault.targets == TABLES:
        return TABLES[number % len(TABLES)]
    programs = [part.name for part in parts if part.role in fault.targets]
    return rng.choice(programs) if programs else ""


class Nemesis:
    """Carries out a plan."""

    def __init__(self, deployment: Deployment, rng: random.Random, log: Log) -> None:
        self._deployment = deployment
        self._rng = rng
        self._log = log
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._in_flight = 0

    async def carry_out(self, planned: Sequence[Planned]) -> None:
        """Return when the last fault is over."""
        began = now()
        sampling = asyncio.create_task(self._sample())
        try:
            async with asyncio.TaskGroup() as faults:
                for number, each in enumerate(planned, 1):
                    await asyncio.sleep(began + each.at_seconds - now())
                    excludes = {*each.fault.excludes, *([each.target] if each.target else [])}
                    await self._free(excludes)
                    happening = faults.create_task(self._happen(number, each))
                    self._busy |= dict.fromkeys(excludes, happening)
        finally:
            sampling.cancel()

    async def _free(self, excludes: set[str]) -> None:
        while busy := {self._busy[word] for word in excludes if word in self._busy} - _done(self._busy):
            await asyncio.wait(busy)

    async def _happen(self, number: int, planned: Planned) -> None:
        fault, target = planned.fault, planned.target
        in_flight = self._in_flight
        self._log.write(FaultBegan(at=now(), by=self._log.by, number=number, fault=fault.name, target=target))
        try:
            bite = await fault.happen(Scene(self._deployment, target, self._rng))
        except Exception as error:  # noqa: BLE001 - a fault that fails did not bite, and the run goes on
            bite = Bite(bit=False, proof=f"{type(error).__name__}: {error}")
        self._log.write(
            FaultEnded(
                at=now(),
                by=self._log.by,
                number=number,
                fault=fault.name,
                target=target,
                bit=bite.bit and in_flight > 0,
                proof=bite.proof,
                in_flight=in_flight,
            )
        )

    async def _sample(self) -> None:
        """Know how many tasks were in flight just before a fault: during it nobody may answer."""
        while True:
            with suppress(StorageError):
                self._in_flight = await self._deployment.in_flight()
            await asyncio.sleep(SAMPLE_SECONDS)


def _done(tasks: dict[str, asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    return {task for task in tasks.values() if task.done()}
