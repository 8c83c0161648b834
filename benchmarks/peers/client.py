"""The client of a peer, which runs in the peer's own environment."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from benchmarks.peers.catalogue import APPS, command
from benchmarks.programs import ProgramFailed, running

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from benchmarks.peers.catalogue import Peer

PREPARE_SECONDS, ENQUEUE_SECONDS = 60.0, 600.0


class Enqueued(msgspec.Struct, frozen=True):
    """When tasks were enqueued, how long that took, and how much processor time of the client."""

    began_at: float
    seconds: float
    cpu_seconds: float


class Client:
    """Enqueues with the peer's own code."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def enqueue(self, tasks: int) -> Enqueued:
        """Enqueue tasks, and return when all are durable; raises ProgramFailed."""
        assert self._process.stdin is not None  # noqa: S101 - a program that talks
        self._process.stdin.write(f"{tasks}\n".encode())
        return msgspec.json.decode(await self.answer(ENQUEUE_SECONDS), type=Enqueued)

    async def answer(self, seconds: float) -> bytes:
        """Read a line; raises ProgramFailed where none comes."""
        assert self._process.stdout is not None  # noqa: S101 - as above
        async with asyncio.timeout(seconds):
            line = await self._process.stdout.readline()
        if not line:
            said = await asyncio.to_thread(self._log.read_text)
            raise ProgramFailed(f"the client of a peer ended: {said[-2000:]}")
        return line


@asynccontextmanager
async def opened(peer: Peer, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Client]:
    """Start the client of a peer, which makes its tables and queues first."""
    log = folder / "client.log"
    words = ("python", "-m", f"{APPS}.client", peer.app)
    async with running(command(words), log, environment, talks=True) as process:
        client = Client(process, log)
        await client.answer(PREPARE_SECONDS)
        yield client
