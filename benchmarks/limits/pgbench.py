"""PostgreSQL's own `pgbench`: statements with prepared parameters, and no time lost in a driver."""

from __future__ import annotations

import os
import re
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.observer import NotAsPromised
from benchmarks.programs import output_of
from storage.embedded.programs import wheel_binaries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.scene import Scene
    from tests.support import servers

CLIENTS = os.cpu_count() or 1

_CREATE = "CREATE TABLE calls (statement int, n int, parameters text[], PRIMARY KEY (statement, n))"
_ADD = "INSERT INTO calls VALUES ($1::int, $2::int, $3::text[]) RETURNING 1"
_READ = "SELECT parameters["

_LATENCY = re.compile(r"^ +(?P<milliseconds>[\d.]+) +\d+ +(?P<text>\S.*)$", re.MULTILINE)


class Statement(NamedTuple):
    """A text with $1, $2, …, and for each call its parameters."""

    sql: str
    calls: Sequence[Sequence[object]]


class Ran(NamedTuple):
    """How many calls of each statement were made over all cores, and how long that took."""

    calls: int
    seconds: float


async def store(scene: Scene, statements: Sequence[Statement]) -> None:
    """Lay the parameters of all calls ready in a table: pgbench could not make them."""
    await scene.fetch("DROP TABLE IF EXISTS calls")
    await scene.fetch(_CREATE)
    for number, statement in enumerate(statements):
        for n, parameters in enumerate(statement.calls):
            await scene.fetch(_ADD, number, n, [literal(each) for each in parameters])
    await scene.fetch("VACUUM ANALYZE calls")


async def run(lent: servers.Database, statements: Sequence[Statement], folder: Path) -> Ran:
    """Run the first call of each statement, then the second of each, and so on, over all cores.

    What is timed is the statements: reading their parameters, which `store` has laid ready, is not.
    Raises NotAsPromised.
    """
    file = folder / "script.sql"
    file.write_text(script(statements))
    rounds = len(statements[0].calls) // CLIENTS
    printed = await output_of(
        *(str(wheel_binaries() / "pgbench"), "--no-vacuum", "--protocol=prepared", "--report-per-command"),
        *(f"--client={CLIENTS}", f"--jobs={CLIENTS}", f"--transactions={rounds}", f"--file={file}"),
        *(f"--define=n={-CLIENTS}", f"--define=clients={CLIENTS}"),
        *(f"--host={lent.host}", f"--port={lent.port}", f"--username={lent.user}", lent.database),
    )
    return Ran(rounds * CLIENTS, rounds * sum(latencies(printed)) / 1000)


def script(statements: Sequence[Statement]) -> str:
    """Write the statements as pgbench reads them: the next call of each, the clients taking turns."""
    lines = [r"\set n :n + :clients"]
    for number, (sql, calls) in enumerate(statements):
        positions = range(1, len(calls[0]) + 1)
        columns = ", ".join(f"parameters[{position}] AS p{number}_{position}" for position in positions)
        # A colon within a literal would be taken for a variable.
        text = re.sub(r"(?<!:):(?=[A-Za-z_])", "'||chr(58)||'", sql)
        lines += [
            f"SELECT {columns} FROM calls",
            f"WHERE statement = {number} AND n = :n::int + :client_id::int \\gset",
            re.sub(r"\$(\d+)", rf":p{number}_\1", text).strip() + ";",
        ]
    return "\n".join(lines) + "\n"


def literal(value: object) -> str:
    """Write a parameter as PostgreSQL reads it."""
    match value:
        case list() | tuple():
            return "{" + ",".join("NULL" if each is None else _quoted(literal(each)) for each in value) + "}"
        case datetime():
            return value.isoformat()
        case _:
            return str(value)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def latencies(printed: str) -> list[float]:
    """Find the mean milliseconds of each of our statements. Raises NotAsPromised."""
    _, _, table = printed.partition("statement latencies")
    found = [(float(match["milliseconds"]), match["text"]) for match in _LATENCY.finditer(table)]
    ours = [milliseconds for milliseconds, text in found if not text.startswith(("\\", _READ))]
    if not ours or "number of failed transactions: 0 " not in printed:
        raise NotAsPromised(printed[-2000:])
    return ours
