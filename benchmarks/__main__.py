"""`make bench` and `make bench-long`: measure round by round, and keep what was found in benchmarks/results.

Within a round all use the same servers, one after the other: ours, the limits, the peers. Each round begins
with a drain that is not kept, so that nobody is charged for cold caches.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.limits import amqp, disk, empty_post, statements
from benchmarks.ours import (
    accept,
    backlog,
    drain,
    embedded,
    latency,
    memory,
    priority,
    reads,
    slow,
    sustained,
    wire,
)
from benchmarks.peers import measure as peers
from benchmarks.peers.catalogue import installed
from benchmarks.results import FOLDER, Origin, keep, machine
from benchmarks.scene import POSTGRES, private_site
from tests.support.rabbitmq_node import CONFIGURATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.scene import Site

TASKS, ROUNDS = 100_000, 5
WARM_UP_TASKS = 2_000
PER_SECOND, SECONDS = 5_000.0, 180.0

LIBRARIES = ("aio-pika", "litestar", "msgspec", "psqlpy", "uvicorn", "uvloop")


class Plan(msgspec.Struct, frozen=True):
    """How much of everything: all sizes follow the number of tasks of a drain."""

    tasks: int = TASKS
    per_second: float = PER_SECOND
    seconds: float = SECONDS


Measure = Callable[["Site", Plan], Awaitable[msgspec.Struct]]

SHORT: Mapping[str, Measure] = {
    "drain": lambda site, plan: drain.measure(site, plan.tasks),
    "shipped": lambda site, plan: drain.measure_shipped(site, plan.tasks),
    "accept": lambda site, _: accept.measure(site),
    "batch": lambda site, _: accept.measure_batches(site),
    "latency": lambda site, _: latency.measure(site),
    "statements": lambda site, plan: statements.measure(site, plan.tasks),
    "amqp": lambda site, plan: amqp.measure(site, plan.tasks),
    "empty": lambda site, _: empty_post.measure(site),
    "disk": lambda site, _: disk.measure(site),
    "wire": lambda site, plan: wire.measure(site, plan.tasks),
    "peers": lambda site, plan: peers.measure(site, plan.tasks),
}
LONG: Mapping[str, Measure] = {
    "slow": lambda site, plan: slow.measure(site, plan.tasks),
    "embedded": lambda site, plan: embedded.measure(site, plan.tasks),
    "sustained": lambda site, plan: sustained.measure(site, plan.per_second, plan.seconds),
    "priority": lambda site, plan: priority.measure(site, 5 * plan.tasks),
    "backlog": lambda site, plan: backlog.measure(site, 10 * plan.tasks, plan.tasks // 10),
    "memory": lambda site, plan: memory.measure(site, 10 * plan.tasks),
    "reads": lambda site, plan: reads.measure(site, 100 * plan.tasks, 10 * plan.tasks),
}
ALL: Mapping[str, Measure] = {**SHORT, **LONG}


class Run:
    """Some measurements, so many rounds of each."""

    def __init__(self, names: Sequence[str], plan: Plan, folder: Path) -> None:
        self._names = names
        self._plan = plan
        self._folder = folder
        self._rounds = defaultdict[str, list[msgspec.Struct]](list)
        self._origin: Origin | None = None

    async def round(self) -> None:
        """Measure each once; what was found is kept at once."""
        with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
            async with private_site(Path(folder)) as site:
                origin = self._origin = self._origin or await _origin(site)
                say("warming up")
                await drain.measure(site, min(WARM_UP_TASKS, self._plan.tasks))
                for name in self._names:
                    began_at = time.monotonic()
                    self._rounds[name].append(await ALL[name](site, self._plan))
                    keep(name, origin, self._rounds[name], self._folder)
                    say(f"{name}: {time.monotonic() - began_at:.0f} s")


async def _origin(site: Site) -> Origin:
    told = await site.servers.origin()
    versions = {name: str(value) for name, value in told["versions"].items() if name != "cores"}
    return Origin(
        commit=told["commit"],
        at=datetime.now(UTC).isoformat(timespec="minutes"),
        machine=machine(),
        versions={**versions, **{name: version(name) for name in LIBRARIES}},
        postgresql=dict(POSTGRES),
    )


def say(words: str) -> None:
    """Tell whoever waits how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")


def names_of(text: str) -> list[str]:
    """Read a list of measurements; raises ArgumentTypeError, naming those that there are."""
    names = text.split(",")
    if unknown := [name for name in names if name not in ALL]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: allowed: {', '.join(ALL)}")
    return names


def main() -> int:
    """Run all rounds."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", type=names_of, default=list(SHORT), help="such as drain,accept,peers")
    parser.add_argument("--long", dest="only", action="store_const", const=list(LONG), help="the long ones")
    parser.add_argument("--tasks", type=int, default=TASKS, help="of a drain; all other sizes follow it")
    parser.add_argument("--rate", type=float, default=PER_SECOND, help="posts a second of sustained")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long sustained posts")
    parser.add_argument("--results", type=Path, default=FOLDER, help="where to keep what was found")
    arguments = parser.parse_args()
    plan = Plan(arguments.tasks, arguments.rate, arguments.seconds)
    settings = [*(f"{name} = {value}" for name, value in POSTGRES.items()), *CONFIGURATION.split("\n")]
    say("; ".join(filter(None, settings)))
    if "peers" in arguments.only and not installed():
        say("the peers are not installed, and left out; `make bench-peers` installs them")
        arguments.only.remove("peers")
    run = Run(arguments.only, plan, arguments.results)
    for number in range(arguments.rounds):
        say(f"round {number + 1} of {arguments.rounds}: {', '.join(arguments.only)}")
        asyncio.run(run.round())
    return 0


if __name__ == "__main__":
    sys.exit(main())
