"""How much memory processes take while something is done to them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

SAMPLE_SECONDS = 0.5
MOST_GROWTH, MOST_GROWTH_MIB = 1.1, 16.0
LOG_MIB = {"rabbitmq": 64.0}
"""A broker keeps what it holds in memory until its log is full (`raft.wal_max_size_bytes`), and then writes
it out (https://www.rabbitmq.com/docs/3.13/quorum-queues#resource-use): as much may come, and no more."""


class Taken(NamedTuple):
    """What processes take at one moment."""

    own_mib: float
    shared_mib: float


class Growth(msgspec.Struct, frozen=True):
    """What a process, with its children, took in the first and in the last quarter of a phase.

    Shared memory stands apart: PostgreSQL reserves it at its start, and fills it by and by.
    """

    first_quarter_mib: float
    last_quarter_mib: float
    most_mib: float
    most_shared_mib: float
    log_mib: float
    samples: int

    @property
    def flat(self) -> bool:
        """Whether no more came than an allocator keeps, and a log holds."""
        return self.last_quarter_mib <= self.first_quarter_mib * MOST_GROWTH + MOST_GROWTH_MIB + self.log_mib


class Sampler:
    """Takes the proportional set size of named groups of processes, each with all its children, by phase."""

    def __init__(self, groups: Callable[[], Mapping[str, Iterable[int]]]) -> None:
        self._groups = groups
        self._phase = ""
        self._samples: dict[tuple[str, str], list[Taken]] = defaultdict(list)

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Sample under this name while the context is open."""
        sampling = asyncio.create_task(self._sample(name))
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.wait([sampling])

    def growth(self) -> dict[str, dict[str, Growth]]:
        """Tell of each phase how each group grew."""
        found: dict[str, dict[str, Growth]] = defaultdict(dict)
        for (phase, group), samples in self._samples.items():
            found[phase][group] = growth_of(samples, LOG_MIB.get(group, 0.0))
        return found

    async def _sample(self, phase: str) -> None:
        while True:
            began_at = time.monotonic()
            children = await asyncio.to_thread(children_of_all)
            for group, pids in self._groups().items():
                family = {member for pid in pids for member in with_children(pid, children)}
                taken = await asyncio.to_thread(taken_by, family)
                self._samples[phase, group].append(taken)
            await asyncio.sleep(max(0.0, began_at + SAMPLE_SECONDS - time.monotonic()))


def growth_of(samples: Sequence[Taken], log_mib: float = 0.0) -> Growth:
    """Compare the first with the last quarter."""
    quarter = max(1, len(samples) // 4)
    own = [each.own_mib for each in samples]
    return Growth(
        first_quarter_mib=round(mean(own[:quarter]), 1),
        last_quarter_mib=round(mean(own[-quarter:]), 1),
        most_mib=round(max(own), 1),
        most_shared_mib=round(max(each.shared_mib for each in samples), 1),
        log_mib=log_mib,
        samples=len(samples),
    )


def taken_by(pids: Iterable[int]) -> Taken:
    """Add up the proportional set sizes of processes; who is gone takes nothing."""
    whole = shared = 0
    for pid in pids:
        with suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            whole += _kibibytes(rollup, "Pss")
            shared += _kibibytes(rollup, "Pss_Shmem")
    return Taken((whole - shared) / 1024, shared / 1024)


def _kibibytes(rollup: str, name: str) -> int:
    return int(rollup.partition(f"\n{name}:")[2].split()[0])


def children_of_all() -> dict[int, list[int]]:
    """Map each process of this machine to its children."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                children[int(parent)].append(int(folder.name))
    return children


def with_children(pid: int, children: Mapping[int, Sequence[int]]) -> list[int]:
    """List a process and all below it."""
    return [pid, *(below for child in children.get(pid, ()) for below in with_children(child, children))]
