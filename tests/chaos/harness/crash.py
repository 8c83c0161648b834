"""A process that dies at a point, and is started again as a supervisor does; and looks at what is left."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.broker.topology import DLQ
from storage.ledger import PostgresLedger
from storage.model import Status
from tests.chaos.harness.crash_points import GO, REACHED
from tests.support.builders import submission
from tests.support.servers import Depth, RabbitmqError
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.servers import Vhost
    from tests.support.service import Process, Service

CRASHING = (sys.executable, "-m", "tests.chaos.harness.crashing")
PATIENCE_SECONDS = 60.0


class Crash:
    """One process of a service, from its start until its supervisor has started it again."""

    def __init__(self, service: Service, point: str, role: str, *, command: str = "run") -> None:
        self._service = service
        self._role = role
        self._command = (*CRASHING, command)
        self._folder = service.effects_file.with_name(point)
        self._folder.mkdir()
        self._environment = {"CRASH_AT": point, "CRASH_FOLDER": str(self._folder)}
        self.process: Process

    async def start(self, **environment: str) -> Process:
        """Start it, for the first time or again; who has died once does not die again."""
        self._environment |= environment
        self.process = await self._service.start(self._role, command=self._command, **self._environment)
        return self.process

    @asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        """Look around while it stands at the point; then it dies there, and nowhere else."""

        def reached() -> bool:
            assert self.process.process.returncode is None, self.process.text()
            return (self._folder / REACHED).exists()

        await eventually(reached, seconds=PATIENCE_SECONDS)
        yield
        (self._folder / GO).touch()
        assert await self.process.process.wait() == -signal.SIGKILL, self.process.text()


class Shown(NamedTuple):
    """What the ledger says of a task, and under which dispatches its handler has started."""

    status: str
    dispatch: int
    attempt: int = 1
    losses: int = 0
    starts: tuple[int, ...] = ()


async def hand_over(service: Service, kind: str, **fields: Any) -> dict[str, Any]:
    """Accept a task as the gateway does, without the HTTP: it is NEW and has an outbox row."""
    given = submission(kind=kind, **{"payload": "{}", **fields})
    async with PostgresLedger(service.database.address) as ledger:
        await ledger.submissions.submit([given])
    return {"id": str(given.id)}


async def shown(service: Service, task: dict[str, Any]) -> Shown:
    """Look at a task."""
    query = "SELECT status, dispatch, attempt, losses FROM tasks WHERE id = $1::text::uuid"
    [(status, *numbers)] = await service.database.fetch(query, [task["id"]])
    starts = tuple(int(line[1]) for line in service.starts(task))
    dispatch, attempt, losses = numbers
    return Shown(Status(status).name, dispatch, attempt, losses, starts)


async def outbox(service: Service) -> list[tuple[int, str, bool]]:
    """Look at the outbox: dispatch, route, and whether a relay has the row, oldest first."""
    query = "SELECT dispatch, route, coalesce(leased_until > now(), false) FROM outbox ORDER BY id"
    return [(dispatch, route, leased) for dispatch, route, leased in await service.database.fetch(query)]


async def expire_row_leases(service: Service) -> None:
    """Spare the test the thirty seconds for which a dead relay keeps its rows."""
    await service.database.fetch("UPDATE outbox SET leased_until = now() RETURNING 1")


async def queues(rabbitmq: Vhost) -> dict[str, Depth] | None:
    """Look at the queues; None while one is being declared and has no leader to ask."""
    try:
        return await rabbitmq.queue_depths()
    except RabbitmqError:
        return None


async def holds(rabbitmq: Vhost, queue: str, *, ready: int = 0, unacked: int = 0) -> None:
    """Wait until a queue holds just this."""

    async def held() -> bool:
        depths = await queues(rabbitmq)
        return depths is not None and depths.get(queue) == Depth(ready, unacked)

    await eventually(held, seconds=PATIENCE_SECONDS)


async def at_rest(service: Service, rabbitmq: Vhost, *, notices: int = 0) -> None:
    """Wait until nothing is under way: no outbox row, no message but the notices of dead tasks; and check."""

    async def settled() -> bool:
        depths = await queues(rabbitmq)
        if depths is None or await outbox(service):
            return False
        held = Counter({queue: depth.ready + depth.unacked for queue, depth in depths.items()})
        return +held == +Counter({DLQ: notices})

    await eventually(settled, seconds=PATIENCE_SECONDS)
    await service.check()
