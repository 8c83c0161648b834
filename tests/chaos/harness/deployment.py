"""The service as it is deployed for a run: one process per role, each behind proxies of its own.

Whatever exits is started again, as a supervisor does; whatever lives is left alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from storage.database import Database
from storage.migrate import migrate
from tests.chaos.harness import changes
from tests.chaos.harness.amqp_frames import AmqpConversation
from tests.chaos.harness.events import Exited, Started
from tests.chaos.harness.history import Log, now
from tests.chaos.harness.postgres_frames import PostgresConversation
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.reports import ROOT
from tests.support.ledgers import address_of
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.chaos.harness.servers import Servers

RESTART_SECONDS = 0.3
ADDRESS_SPACE_BYTES = 4 << 30
"""What a worker may have: a handler that eats all memory meets this, and not the machine's."""

SETTINGS = {
    "WORKER_LEASE_SECONDS": "3",
    "OUTBOX_POLL_INTERVAL": "0.2",
    "RETRY_DELAYS_SECONDS": "1,2",
    "DRAIN_SECONDS": "5",
    "REQUEST_TIMEOUT_SECONDS": "3",
    "RETENTION_SECONDS": "0",
    "LOG_FORMAT": "json",
    "HANDLERS": "tests.chaos.harness.handlers",
}
"""Faults show and heal within seconds; everything else is as shipped."""


class Part(NamedTuple):
    """One process of a deployment."""

    name: str
    role: str
    queues: str = "tasks.high,tasks.medium,tasks.low"


WHOLE = (
    Part("relay-1", "relay"),
    Part("relay-2", "relay"),
    Part("worker-1", "worker"),
    Part("worker-2", "worker"),
    Part("worker-3", "worker", "tasks.high,tasks.medium"),
    Part("dead-letter", "dead-letter"),
    Part("janitor", "janitor"),
    Part("gateway", "gateway"),
)


class Program:
    """One part, kept running; `postgres` and `rabbitmq` are its own ways to the servers."""

    def __init__(self, part: Part, folder: Path, environment: Mapping[str, str], log: Log) -> None:
        self.name = part.name
        self.role = part.role
        self.extra: dict[str, str] = {}
        """What the next incarnation finds in its environment beside the usual."""
        self._folder = folder
        self._environment = environment
        self._log = log
        self._incarnation = 0
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._wanted: set[int] = set()
        self._retired = False
        self.postgres: Proxy
        self.rabbitmq: Proxy

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Keep it running from now on."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def kill(self) -> int | None:
        """End it as a crash does; the pid, None if there is nothing to end."""
        return self._signal(signal.SIGKILL)

    def freeze(self) -> int | None:
        """Stop it where it stands."""
        return self._signal(signal.SIGSTOP)

    def thaw(self, pid: int) -> None:
        """Let a stopped process go on."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def terminate(self) -> int | None:
        """Ask it to end; its exit code must be 0 then."""
        pid = self._signal(signal.SIGTERM)
        if pid is not None:
            self._wanted.add(pid)
        return pid

    async def retire(self, seconds: float) -> None:
        """Ask it to end and start it no more."""
        self._retired = True
        self.terminate()
        if self._keeper is not None:
            await asyncio.wait([self._keeper], timeout=seconds)

    async def gone(self, pid: int, seconds: float) -> int | None:
        """Wait until that process has ended; its exit code, None if it lives on."""
        process = self._process
        if process is None or process.pid != pid:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await process.wait()
        return None

    async def close(self) -> None:
        """End it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> int | None:
        pid = self.pid
        if pid is not None and self._process is not None:
            self._process.send_signal(number)
        return pid

    async def _keep(self) -> None:
        while not self._retired:
            process = self._process = await self._start()
            self._log.write(Started(at=now(), by=self._log.by, program=self.name, pid=process.pid))
            code = await process.wait()
            wanted = process.pid in self._wanted
            exited = Exited(
                at=now(), by=self._log.by, program=self.name, pid=process.pid, code=code, wanted=wanted
            )
            self._log.write(exited)
            await asyncio.sleep(RESTART_SECONDS)

    async def _start(self) -> asyncio.subprocess.Process:
        self._incarnation += 1
        by = f"{self.name}.{self._incarnation}"
        limit = [f"--as={ADDRESS_SPACE_BYTES}"] if self.role == "worker" else []
        with (self._folder / f"{by}.log").open("wb") as output:
            return await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", "prlimit", *limit, "--core=0"),
                *(sys.executable, "-m", "tests.chaos.harness.program", "run"),
                env={**self._environment, **self.extra, "CHAOS_BY": by},
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )


class Deployment:
    """All programs of a run, on servers that the nemesis may break."""

    def __init__(
        self,
        folder: Path,
        servers: Servers,
        log: Log,
        *,
        parts: Sequence[Part] = WHOLE,
        mutant: str = "",
    ) -> None:
        self.postgres, self.rabbitmq = servers
        self.folder = folder
        self.effects_file = folder / "effects"
        self.log = log
        self.database = Database(address_of(self.postgres.home), size=4, timeout_seconds=20)
        self._parts = parts
        self._mutant = mutant
        self.programs: dict[str, Program] = {}
        self._stack = AsyncExitStack()
        [self.port] = free_ports(1)

    @property
    def url(self) -> str:
        """Where the gateway listens, whichever of its processes runs."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        """Bring the schema, and start everything."""
        self._stack.push_async_callback(self.database.close)
        await migrate(self.database)
        await changes.watch(self.database)
        for part in self._parts:
            self.programs[part.name] = await self._program(part)
        for program in self.programs.values():
            program.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End everything but the servers."""
        await asyncio.gather(*(program.close() for program in self.programs.values()))
        await self._stack.aclose()

    def workers(self) -> list[Program]:
        """List the workers."""
        return [program for program in self.programs.values() if program.role == "worker"]

    async def in_flight(self) -> int:
        """Count the tasks that have not ended."""
        [(count,)] = await self.database.fetch("SELECT count(*)::int FROM tasks WHERE status < 3")
        return int(count)

    async def _program(self, part: Part) -> Program:
        home = self.postgres.home
        postgres = Proxy(home.host, home.port, PostgresConversation)
        rabbitmq = Proxy(self.rabbitmq.host, self.rabbitmq.port, AmqpConversation)
        for proxy in (postgres, rabbitmq):
            await proxy.start()
            self._stack.push_async_callback(proxy.close)
        environment = {
            **os.environ,
            **SETTINGS,
            "ROLE": part.role,
            "WORKER_QUEUES": part.queues,
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(postgres.port),
            "POSTGRES_USER": home.user,
            "POSTGRES_PASSWORD": home.password,
            "POSTGRES_DB": home.database,
            "RABBITMQ_URL": self.rabbitmq.url().replace(f":{self.rabbitmq.port}/", f":{rabbitmq.port}/"),
            "PORT": str(self.port),
            "PYTHONPATH": str(ROOT),
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_EFFECTS": str(self.effects_file),
            "CHAOS_MUTANT": self._mutant,
            "CHAOS_WALL_MINUS_MONOTONIC": repr(time.time() - time.monotonic()),
        }
        program = Program(part, self.folder, environment, self.log)
        program.postgres, program.rabbitmq = postgres, rabbitmq
        return program
