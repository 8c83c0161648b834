"""What tasks cost: processor time by the kernel's books, and the log by PostgreSQL's own reading of it.

`baton bench` reads the counters of any server, which tell the number of full-page images and not their bytes;
here the log itself lies at hand.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from benchmarks.programs import output_of
from pipeline.bench.costs import Processes
from storage.embedded.programs import wheel_binaries
from tests.support.ledgers import address_of, connected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.chaos.harness.servers import Servers

OWN = "benchmark"

_INSERTED = "SELECT pg_current_wal_insert_lsn()::text"
_FLUSH = "SELECT pg_logical_emit_message(true, 'benchmarks', '')::text"
_FOLDER = "SELECT current_setting('data_directory')"
# Of a position at the border of two segments, the one that is read.
_SEGMENTS = "SELECT pg_walfile_name($1::text::pg_lsn + 1) || ' ' || pg_walfile_name($2::text::pg_lsn - 1)"

_TOTAL = re.compile(r"^Total +\d+ +(?P<records>\d+) \[[\d.]+%\] +(?P<images>\d+) \[", re.MULTILINE)
_COMMITS = re.compile(r"^Transaction/COMMIT(?:_PREPARED)? +(?P<count>\d+) ", re.MULTILINE)


class Log(NamedTuple):
    """A stretch of the write-ahead log."""

    record_bytes: int
    full_page_image_bytes: int
    commits: int


class Cost(msgspec.Struct, frozen=True):
    """What one task, or one call, costs; full-page images are not within `wal_bytes`.

    `commits` counts those that were written to the log.
    """

    cpu_microseconds: dict[str, float]
    wal_bytes: float
    full_page_image_bytes: float
    commits: float


class Meter:
    """Reads what processes have used since it was made; each with all its children."""

    def __init__(self, servers: Servers, groups: Mapping[str, int] | None = None) -> None:
        self._servers = servers
        self._groups = {
            **(groups or {}),
            "postgresql": servers.postgres.pids()[0],
            "rabbitmq": servers.rabbitmq.pids()[0],
        }
        self._processes = Processes()
        self._before = self._cpu_seconds()
        self._from = ""

    @classmethod
    async def start(cls, servers: Servers, groups: Mapping[str, int] | None = None) -> Meter:
        """Begin to measure."""
        meter = cls(servers, groups)
        meter._from = await meter._ask(_INSERTED)
        return meter

    def restart_cpu(self, groups: Mapping[str, int]) -> None:
        """Count processor time from here on, of these groups too; the log still from the start."""
        self._groups = {**groups, **self._groups}
        self._before = self._cpu_seconds()

    async def read(self, calls: int) -> Cost:
        """Divide what was used by the number of tasks, or calls."""
        used = {name: now - self._before[name] for name, now in self._cpu_seconds().items()}
        log = await self._read_log()
        return Cost(
            cpu_microseconds={name: round(1e6 * seconds / calls, 1) for name, seconds in used.items()},
            wal_bytes=round(log.record_bytes / calls, 1),
            full_page_image_bytes=round(log.full_page_image_bytes / calls, 1),
            commits=round(log.commits / calls, 4),
        )

    def _cpu_seconds(self) -> dict[str, float]:
        return {
            **{name: self._processes.cpu_seconds(pid) for name, pid in self._groups.items()},
            # It is above most of the others: of its own time, none of theirs.
            OWN: time.process_time(),
        }

    async def _read_log(self) -> Log:
        until = await self._ask(_INSERTED)
        if until == self._from:
            return Log(0, 0, 0)
        folder = Path(await self._ask(_FOLDER)) / "pg_wal"
        await self._ask(_FLUSH)  # a commit, so that all that was inserted before can be read
        printed = await output_of(
            str(wheel_binaries() / "pg_waldump"),
            "--stats=record",
            "-p",
            str(folder),
            "-s",
            self._from,
            "-e",
            until,
            # Without a name it asks the first file of the folder how long a segment is, and that file may be
            # one that has been made and not been written.
            *(await self._ask(_SEGMENTS, self._from, until)).split(),
        )
        return read_statistics(printed)

    async def _ask(self, sql: str, *parameters: str) -> str:
        async with connected(address_of(self._servers.postgres.home)) as database:
            [(answer,)] = await database.fetch(sql, parameters)
        return str(answer)


def read_statistics(printed: str) -> Log:
    """Read what `pg_waldump --stats=record` prints."""
    total = _TOTAL.search(printed)
    if total is None:
        raise ValueError(f"pg_waldump printed no total: {printed[-500:]!r}")
    commits = sum(int(match["count"]) for match in _COMMITS.finditer(printed))
    return Log(int(total["records"]), int(total["images"]), commits)
