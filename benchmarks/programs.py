"""Programs that are measured and are not roles of the service, each with all that it starts."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 10.0


@asynccontextmanager
async def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, *, talks: bool = False
) -> AsyncIterator[Process]:
    """Run a program of this checkout while the context is open; its log is a file.

    One that `talks` is spoken to by standard input, and answers by standard output.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            cwd=log.parent,
            stdin=asyncio.subprocess.PIPE if talks else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if talks else output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    """End a program as a supervisor does; what is left of its session is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await process.wait()


async def output_of(*command: str) -> str:
    """Run a program to its end; what it prints. Raises ProgramFailed with its last words."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed = (await process.communicate())[0].decode(errors="replace")
    if process.returncode:
        raise ProgramFailed(f"{Path(command[0]).name} ended with {process.returncode}: {printed[-2000:]}")
    return printed


class ProgramFailed(Exception):
    """A program did not do what it was asked for."""
