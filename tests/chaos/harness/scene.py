"""The service with the settings as shipped, on servers of its own, under a load that can be measured."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import httpx

from tests.chaos.harness.servers import private_servers
from tests.support.ports import free_ports
from tests.support.service import Service, service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.chaos.harness.servers import Servers
    from tests.support.service import Process

SHIPPED = {"LOG_FORMAT": "json"}
"""No setting but how the log is read; addresses and handlers come with the service."""

TASKS = "/api/v1/tasks"
OPEN_CALLS = 200
BOOT_SECONDS = 60.0
IN_HAND = "SELECT count(*)::int FROM tasks WHERE status < 3"
BEHIND = "SELECT count(*)::int FROM tasks WHERE status < 3 AND created_at < now() - interval '2 seconds'"


class Accepted(NamedTuple):
    """A task that was answered 201, by the monotonic clock."""

    id: UUID
    sent_at: float
    answered_at: float


class Load:
    """Clients that submit at a steady rate whatever comes back, and forget a call that fails."""

    def __init__(self, url: str) -> None:
        self.accepted: list[Accepted] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._client = httpx.AsyncClient(
            base_url=url, timeout=10.0, limits=httpx.Limits(max_connections=OPEN_CALLS)
        )

    async def submit(self, kind: str = "work.do", **payload: object) -> None:
        """Submit one task."""
        sent_at = time.monotonic()
        try:
            response = await self._client.post(TASKS, json={"kind": kind, "payload": payload})
        except httpx.TransportError:
            return
        if response.status_code == httpx.codes.CREATED:
            self.accepted.append(Accepted(UUID(response.json()["id"]), sent_at, time.monotonic()))

    async def cancel(self, task_ids: Sequence[str]) -> None:
        """Cancel tasks, waiting or running."""
        for task_id in task_ids:
            await self._client.delete(f"{TASKS}/{task_id}")

    async def keep_up(self, tasks_per_second: float, seconds: float) -> None:
        """Submit tasks of `seconds` at that rate, until cancelled."""
        while True:
            if len(self._calls) < OPEN_CALLS:
                call = asyncio.create_task(self.submit(seconds=seconds))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
            await asyncio.sleep(1 / tasks_per_second)

    async def close(self) -> None:
        """Wait for the calls under way."""
        if self._calls:
            await asyncio.wait(self._calls)
        await self._client.aclose()


class Scene:
    """Servers, service and load of one measurement; `worker-1` names a process by its role and number."""

    def __init__(self, servers: Servers, running: Service) -> None:
        self.servers = servers
        self.service = running
        self.parts: dict[str, Process] = {}
        [port] = free_ports(1)
        self._port = str(port)
        self.load = Load(f"http://127.0.0.1:{self._port}")

    async def start(self, *names: str) -> None:
        """Start processes, or start them again."""

        async def start(name: str) -> None:
            role = name.rstrip("-0123456789")
            self.parts[name] = await self.service.start(role, PORT=self._port)

        await asyncio.gather(*map(start, names))

    async def kill(self, name: str) -> float:
        """End a process by kill -9; when that was."""
        self.parts[name].process.kill()
        at = time.monotonic()
        await self.parts[name].kill()
        return at

    async def count(self, query: str, parameters: Sequence[object] = ()) -> int:
        [(count,)] = await self.service.database.fetch(query, parameters)
        return int(count)

    async def calm(self, seconds: float = 120.0) -> None:
        """Wait until no task is late."""

        async def caught_up() -> bool:
            return not await self.count(BEHIND)

        await eventually(caught_up, seconds=seconds)

    async def all_done(self, seconds: float = 120.0) -> None:
        """Wait until every task has ended."""

        async def ended() -> bool:
            return not await self.count(IN_HAND)

        await eventually(ended, seconds=seconds)

    def said(self, role: str, event: str) -> int:
        """Count what the processes of a role have logged."""
        return sum(process.text().count(f'"{event}"') for process in self.service.processes(role))


@asynccontextmanager
async def set_up(folder: Path, *names: str) -> AsyncIterator[Scene]:
    """Start servers and processes, and see a first task through them."""
    async with (
        private_servers(folder) as servers,
        service(servers.postgres.home, servers.rabbitmq.url(), folder, SHIPPED) as running,
    ):
        opened = Scene(servers, running)
        await opened.start(*names)
        await running.ended(await running.submit("work.do", {}), seconds=BOOT_SECONDS)
        try:
            yield opened
        finally:
            await opened.load.close()


@asynccontextmanager
async def steady(load: Load, tasks_per_second: float, seconds: float) -> AsyncIterator[None]:
    """Keep a load up for as long as the context is open."""
    loading = asyncio.create_task(load.keep_up(tasks_per_second, seconds))
    try:
        yield
    finally:
        loading.cancel()
        await asyncio.wait({loading})
