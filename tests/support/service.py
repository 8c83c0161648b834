"""The service as its operators run it: one process per role, on real servers, killed at will."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from storage.database import Database
from storage.migrate import migrate
from tests.support.ledgers import address_of
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tests.support import servers

BATON = Path(sys.executable).with_name("baton")
RUN = (BATON, "run")
HANDLERS = "tests.support.work"
QUICK = {
    "WORKER_LEASE_SECONDS": "3",
    "OUTBOX_POLL_INTERVAL": "0.2",
    "RETRY_DELAYS_SECONDS": "1,2",
    "DRAIN_SECONDS": "5",
    "LOG_FORMAT": "json",
}
"""Settings under which faults show and heal within seconds."""

START_SECONDS = 120.0


class Process:
    """One `baton run`, its log in a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text()

    def threads(self) -> set[str]:
        """List the ids of its threads; the main one has the id of the process."""
        return {thread.name for thread in Path(f"/proc/{self.pid}/task").iterdir()}

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        """End it as a crash does."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def stop(self, seconds: float = 30.0) -> int:
        """End it as a supervisor does; the exit code."""
        self.signal(signal.SIGTERM)
        async with asyncio.timeout(seconds):
            return await self.process.wait()


class Service:
    """Processes of one service that share a database, a vhost and a folder of effects."""

    def __init__(
        self, database: servers.Database, amqp_url: str, folder: Path, settings: Mapping[str, str] = QUICK
    ) -> None:
        self.database = Database(address_of(database), size=2)
        self.effects_file = folder / "effects"
        self.effects_file.touch()
        self._folder = folder
        self._environment = {
            **os.environ,
            **settings,
            "POSTGRES_HOST": database.host,
            "POSTGRES_PORT": str(database.port),
            "POSTGRES_USER": database.user,
            "POSTGRES_PASSWORD": database.password,
            "POSTGRES_DB": database.database,
            "RABBITMQ_URL": amqp_url,
            "HANDLERS": HANDLERS,
            "HTTP_ALLOW_PRIVATE_ADDRESSES": "true",
            "PORT": "0",
            "EFFECTS": str(self.effects_file),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self._processes: list[Process] = []
        self._numbers = count()
        self._client: httpx.AsyncClient | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a command finds that is run beside the service."""
        return dict(self._environment)

    @property
    def client(self) -> httpx.AsyncClient:
        """Talks to the gateway that was started last."""
        assert self._client is not None, "no gateway was started"
        return self._client

    async def start(self, role: str, *, command: Sequence[str | Path] = RUN, **environment: str) -> Process:
        """Start a process with these roles; a gateway is returned once it listens.

        Another `command` stands for the program itself, with a part of it replaced.
        """
        log = self._folder / f"{role.replace(',', '-')}-{next(self._numbers)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment | {"ROLE": role} | environment,
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        started = Process(process, log)
        self._processes.append(started)
        if "gateway" in role:
            url = await eventually(lambda: _url(started), seconds=START_SECONDS)
            if self._client is not None:
                await self._client.aclose()
            self._client = httpx.AsyncClient(base_url=url, timeout=60.0)
        return started

    async def start_all(self, **environment: str) -> None:
        """Start one process per role, and see a first task through them."""
        # The gateway last: the others boot while it is waited for.
        for role in ("relay", "worker", "dead-letter,janitor", "gateway"):
            await self.start(role, **environment)
        await self.ended(await self.submit("work.do", {}), seconds=60)

    async def submit(self, kind: str, payload: object = None, **fields: Any) -> dict[str, Any]:
        """Hand a task over; the 201's body."""
        wait = fields.pop("wait", 0)
        response = await self.client.post(
            "/api/v1/tasks", json={"kind": kind, "payload": payload, **fields}, params={"wait": wait}
        )
        assert response.status_code == 201, response.text
        task: dict[str, Any] = response.json()
        return task

    async def task(self, task: dict[str, Any], wait: float = 0) -> dict[str, Any]:
        """Ask where a task is."""
        response = await self.client.get(f"/api/v1/tasks/{task['id']}", params={"wait": wait})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def ended(self, task: dict[str, Any], seconds: float = 30.0) -> dict[str, Any]:
        """Wait for a task's outcome."""
        answer = await self.task(task, wait=seconds)
        assert answer["finished_at"], answer
        return answer

    async def counts(self) -> dict[str, int]:
        """Count the tasks by status."""
        names = ["NEW", "PENDING", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"]
        rows = await self.database.fetch("SELECT status::int, count(*)::int FROM tasks GROUP BY 1")
        return {names[status]: count for status, count in rows}

    async def all_ended(self, total: int, seconds: float = 60.0) -> dict[str, int]:
        """Wait until this many tasks have ended; the counts by status."""

        async def ended() -> dict[str, int]:
            counts = await self.counts()
            over = sum(counts.get(status, 0) for status in ("COMPLETED", "FAILED", "CANCELLED"))
            return counts if over == sum(counts.values()) == total else {}

        return await eventually(ended, seconds=seconds)

    def effects(self) -> list[list[str]]:
        """Read what handlers left at each start: `<task id> <dispatch> <note> <monotonic time> <thread id>`.

        A process is known by the id of its main thread.
        """
        return [line.split() for line in self.effects_file.read_text().splitlines()]

    def starts(self, task: dict[str, Any]) -> list[list[str]]:
        """Read the effects of one task."""
        return [line for line in self.effects() if line[0] == task["id"]]

    def open_gate(self, dispatch: int) -> None:
        """Let `work.gated` end under this dispatch."""
        Path(f"{self.effects_file}.{dispatch}").touch()

    async def silence_workers(self) -> None:
        """Spare the test a lease: who lives beats again, who is killed or stopped is declared dead."""
        await self.database.fetch("UPDATE workers SET last_seen = 'epoch' RETURNING 1")

    def processes(self, role: str) -> list[Process]:
        """List the processes that were started for a role."""
        return [process for process in self._processes if process.log.name.startswith(f"{role}-")]

    async def check(self) -> None:
        """Check what must hold at rest: no dispatch started twice, no attempt too many, nothing left."""
        starts = Counter((line[0], line[1]) for line in self.effects())
        assert [start for start, count in starts.items() if count > 1] == []
        too_many = "SELECT count(*)::int FROM tasks WHERE attempt > max_retries + 1"
        assert await self.database.fetch(too_many) == [(0,)]
        unfinished = "SELECT count(*)::int FROM tasks WHERE status < 3 OR worker_id IS NOT NULL"
        assert await self.database.fetch(unfinished) == [(0,)]
        forgotten = "SELECT count(*)::int FROM outbox WHERE status = 1"
        assert await self.database.fetch(forgotten) == [(0,)]
        idle = """SELECT count(*)::int FROM pg_stat_activity
                  WHERE datname = current_database() AND state LIKE 'idle in transaction%'"""
        assert await self.database.fetch(idle) == [(0,)]

    async def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            await process.kill()
        if self._client is not None:
            await self._client.aclose()
        await self.database.close()


def _url(process: Process) -> str:
    assert process.process.returncode is None, process.text()
    for line in process.text().splitlines():
        if '"listening"' in line:
            return line.split('"url":')[1].split('"')[1]
    return ""


@asynccontextmanager
async def service(
    database: servers.Database, amqp_url: str, folder: Path, settings: Mapping[str, str] = QUICK
) -> AsyncIterator[Service]:
    """A service on a migrated database; nothing runs yet."""
    running = Service(database, amqp_url, folder, settings)
    try:
        await migrate(running.database)
        yield running
    finally:
        await running.close()
