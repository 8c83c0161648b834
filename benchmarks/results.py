"""What measurements found, kept as JSON: a file for each measurement, with all its rounds."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from benchmarks.limits.amqp import Amqp  # noqa: TC001 - msgspec resolves the annotations at run time
from benchmarks.limits.disk import Disk  # noqa: TC001 - as above
from benchmarks.limits.empty_post import Empty  # noqa: TC001 - as above
from benchmarks.limits.statements import Statements  # noqa: TC001 - as above
from benchmarks.ours.accept import Accept  # noqa: TC001 - as above
from benchmarks.ours.backlog import Backlog  # noqa: TC001 - as above
from benchmarks.ours.drain import Drain  # noqa: TC001 - as above
from benchmarks.ours.embedded import Embedded  # noqa: TC001 - as above
from benchmarks.ours.latency import Latency  # noqa: TC001 - as above
from benchmarks.ours.memory import Memory  # noqa: TC001 - as above
from benchmarks.ours.priority import Behind  # noqa: TC001 - as above
from benchmarks.ours.reads import Reads  # noqa: TC001 - as above
from benchmarks.ours.slow import Slow  # noqa: TC001 - as above
from benchmarks.ours.sustained import Sustained  # noqa: TC001 - as above
from benchmarks.ours.wire import Wire  # noqa: TC001 - as above
from benchmarks.peers.measure import Peers  # noqa: TC001 - as above
from benchmarks.programs import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

Found = TypeVar("Found")

FOLDER = ROOT / "benchmarks" / "results"


class Origin(msgspec.Struct, frozen=True):
    """What was measured, on what, and when."""

    commit: str
    at: str
    machine: str
    versions: dict[str, str]
    postgresql: dict[str, str]


class Series(msgspec.Struct, Generic[Found], frozen=True):
    """The rounds of one measurement; those of one run have servers, commit and machine in common."""

    origin: Origin
    rounds: list[Found]


class Results(msgspec.Struct, frozen=True):
    """Everything that is kept; None where it has not been measured."""

    drain: Series[Drain] | None = None
    shipped: Series[Drain] | None = None
    accept: Series[Accept] | None = None
    batch: Series[Accept] | None = None
    latency: Series[Latency] | None = None
    statements: Series[Statements] | None = None
    amqp: Series[Amqp] | None = None
    empty: Series[Empty] | None = None
    disk: Series[Disk] | None = None
    wire: Series[Wire] | None = None
    peers: Series[Peers] | None = None
    sustained: Series[Sustained] | None = None
    priority: Series[Behind] | None = None
    backlog: Series[Backlog] | None = None
    reads: Series[Reads] | None = None
    slow: Series[Slow] | None = None
    embedded: Series[Embedded] | None = None
    memory: Series[Memory] | None = None


def keep(name: str, origin: Origin, rounds: Sequence[object], folder: Path = FOLDER) -> None:
    """Write the rounds of a measurement so far."""
    folder.mkdir(exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(Series(origin, list(rounds))), indent=1)
    (folder / f"{name}.json").write_bytes(text + b"\n")


def read(folder: Path = FOLDER) -> Results:
    """Read what is kept."""
    found = {file.stem: msgspec.json.decode(file.read_bytes()) for file in folder.glob("*.json")}
    return msgspec.convert(found, Results)


def machine() -> str:
    """Describe this machine as its kernel does."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({_processor()}), {memory_gib:.0f} GiB, Linux {platform.release()}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
