"""One run: servers, programs, clients and the nemesis; then rest, and the whole history."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import StorageError
from tests.chaos.harness import changes
from tests.chaos.harness.clients import Clients
from tests.chaos.harness.deployment import WHOLE, Deployment
from tests.chaos.harness.events import LoadEnded, RunEnded
from tests.chaos.harness.final import read_final
from tests.chaos.harness.history import History, Log, now, read_effects, read_events
from tests.chaos.harness.nemesis import Nemesis, plan
from tests.support.servers import RabbitmqError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.chaos.harness.deployment import Part
    from tests.chaos.harness.nemesis import Planned
    from tests.chaos.harness.servers import Servers

TASKS_PER_SECOND = 200.0
AFTERWARDS_SECONDS = 5.0
"""How long the clients go on after the last fault."""

PROGRESS_SECONDS = 32.0
"""Every process is watched for so long after the last fault: who lives must make progress within 30 s."""

REST_SECONDS = 60.0
CLOCK_SECONDS = 5.0
STOP_SECONDS = 30.0


class Scenario(NamedTuple):
    """What a run is made of; without `planned` the faults are drawn from the seed."""

    seed: int
    seconds: float
    planned: Sequence[Planned] | None = None
    parts: Sequence[Part] = WHOLE
    mutant: str = ""
    tasks_per_second: float = TASKS_PER_SECOND
    watch_seconds: float = PROGRESS_SECONDS
    rest_seconds: float = REST_SECONDS


async def run(scenario: Scenario, folder: Path, servers: Servers) -> History:
    """Let it all happen; the history lies in `folder`, among the logs of all programs, and is returned."""
    # One source of chance for each, so that what the clients meet does not change what the nemesis does.
    chance = [random.Random(f"{scenario.seed}/{part}") for part in ("plan", "nemesis", "clients")]
    planned = scenario.planned
    if planned is None:
        planned = plan(scenario.seed, chance[0], scenario.parts, scenario.seconds)
    log = Log(folder / "harness.events", "harness")
    async with Deployment(folder, servers, log, parts=scenario.parts, mutant=scenario.mutant) as deployment:
        clients_log = Log(folder / "client.events", "client")
        nemesis_log = Log(folder / "nemesis.events", "nemesis")
        async with (
            Clients(deployment.url, chance[2], clients_log, scenario.tasks_per_second) as clients,
            _clock(log),
        ):
            await clients.up()
            until = asyncio.Event()
            loading = asyncio.create_task(clients.submit(until))
            began = now()
            await Nemesis(deployment, chance[1], nemesis_log).carry_out(planned)
            calm = now()
            await asyncio.sleep(max(AFTERWARDS_SECONDS, began + scenario.seconds - now()))
            until.set()
            await loading
            log.write(LoadEnded(at=now(), by=log.by))
            await _rest(deployment, clients, log, calm, scenario)
        queues = await _depths(deployment)
        await asyncio.gather(*(each.retire(STOP_SECONDS) for each in deployment.programs.values()))
        events = read_events(folder)
        final = await read_final(deployment.database, queues)
        ahead = changes.ahead_seconds(events)
        return History(
            seed=scenario.seed,
            events=events,
            tasks=await changes.task_changes(deployment.database, ahead),
            outbox=await changes.outbox_changes(deployment.database, ahead),
            effects=read_effects(deployment.effects_file),
            final=final,
        )


async def _rest(deployment: Deployment, clients: Clients, log: Log, calm: float, scenario: Scenario) -> None:
    """Wait until nothing is left to do, and long enough to see who makes no progress."""
    left = "not asked yet"
    while left and now() < calm + scenario.rest_seconds:
        with suppress(StorageError, RabbitmqError):
            left = await _left(deployment)
        await asyncio.sleep(0.2)
    open_calls = await clients.finish(max(1.0, calm + scenario.rest_seconds - now()))
    await asyncio.sleep(max(0.0, calm + scenario.watch_seconds - now()))
    said = f"{left}; {open_calls} calls not answered" if left or open_calls else ""
    log.write(RunEnded(at=now(), by=log.by, at_rest=not said, said=said))


async def _left(deployment: Deployment) -> str:
    tasks = await deployment.in_flight()
    [(rows,)] = await deployment.database.fetch("SELECT count(*)::int FROM outbox WHERE status = 0")
    messages = sum(ready + unacked for ready, unacked in (await _depths(deployment)).values())
    return f"{tasks} tasks, {rows} rows, {messages} messages left" if tasks or rows or messages else ""


async def _depths(deployment: Deployment) -> dict[str, tuple[int, int]]:
    depths = await deployment.rabbitmq.queue_depths()
    return {queue: (depth.ready, depth.unacked) for queue, depth in depths.items()}


@asynccontextmanager
async def _clock(log: Log) -> AsyncIterator[None]:
    """Compare the clocks now and then."""

    async def compare() -> None:
        while True:
            log.write(changes.clock(log.by))
            await asyncio.sleep(CLOCK_SECONDS)

    comparing = asyncio.create_task(compare())
    try:
        yield
    finally:
        comparing.cancel()
