"""The disk: some bytes written and made durable, as by each commit, with nothing else under way."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import msgspec

from benchmarks.percentiles import Milliseconds

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.scene import Site

FILE_BYTES, WRITE_BYTES = 64 << 20, 16 << 10
SECONDS, REST_SECONDS = 20.0, 0.002


class Disk(msgspec.Struct, frozen=True):
    """How long a write of so many bytes into a file that is there, and its fdatasync, take."""

    write_bytes: int
    durable: Milliseconds


async def measure(site: Site) -> Disk:
    """Write for 20 s, with a rest after each."""
    durable = await asyncio.to_thread(_write, site.new_folder() / "log")
    return Disk(write_bytes=WRITE_BYTES, durable=Milliseconds.of(durable))


def _write(path: Path) -> list[float]:
    path.write_bytes(bytes(FILE_BYTES))
    taken: list[float] = []
    with path.open("r+b", buffering=0) as file:
        os.fsync(file)
        until = time.monotonic() + SECONDS
        while (began_at := time.monotonic()) < until:
            os.pwrite(file.fileno(), bytes(WRITE_BYTES), len(taken) * WRITE_BYTES % FILE_BYTES)
            os.fdatasync(file)
            taken.append(time.monotonic() - began_at)
            time.sleep(REST_SECONDS)
    return taken
