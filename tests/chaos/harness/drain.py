"""`make drain`: SIGTERM under load, again and again, with the settings as shipped."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.harness.reports import keep
from tests.chaos.harness.scene import set_up, steady
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.chaos.harness.scene import Scene
    from tests.support.service import Process

PARTS = ("relay-1", "relay-2", "worker-1", "worker-2", "dead-letter", "janitor", "gateway")
# Workers most often, since they have the most to lose.
TURNS = ("worker-1", "relay-1", "worker-2", "gateway", "worker-1", "relay-2", "worker-2", "janitor")
ROUNDS = 50
LONG_EVERY = 8
LONG_TASKS = 10
LONG_SECONDS = 40.0
SECOND_SIGNALS = 5
TASKS_PER_SECOND = 20.0
TASK_SECONDS = 1.0
GRACE_SECONDS = 25.0
"""DRAIN_SECONDS as shipped."""

LIMIT_SECONDS = GRACE_SECONDS + 10.0
"""What runs at the end of the grace is interrupted, and its verdict must still be recorded."""

AT_ONCE_SECONDS = 2.0
PATIENCE_SECONDS = 120.0
BUSY = 3

BURNT = "SELECT count(*)::int FROM tasks WHERE attempt > 1"
LOST = "SELECT coalesce(sum(losses), 0)::int FROM tasks"
DONE = "SELECT count(*)::int FROM tasks WHERE status = 3"
INTERRUPTED = "SELECT count(*)::int FROM tasks WHERE dispatch > 1"


class Ended(NamedTuple):
    """How a process that was told to end has ended."""

    code: int
    seconds: float


def main() -> int:
    """Drain, write the report, and tell; the exit code is 1 where something was burnt or took too long."""
    parser = argparse.ArgumentParser(prog="make drain", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often a process is told to end")
    parser.add_argument("--keep", action="store_true", help="write the report to tests/chaos/reports")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="baton-drain-"))
    report = asyncio.run(_measure(folder, given.rounds))
    print(f"drain: {report}")
    if given.keep:
        keep("drain", report)
    shutil.rmtree(folder)
    return 0 if _as_promised(report) else 1


def _as_promised(report: dict[str, Any]) -> bool:
    burnt = report["attempts_burnt"] + report["losses"] + report["tasks"] - report["completed"]
    clean = burnt == 0 and set(report["exit_codes"]) == {"0"}
    in_time = report["worst_seconds"] <= LIMIT_SECONDS
    return clean and in_time and report["second_signal"]["worst_seconds"] <= AT_ONCE_SECONDS


async def _measure(folder: Path, rounds: int) -> dict[str, Any]:
    ends: list[Ended] = []
    async with set_up(folder, *PARTS) as scene:
        origin = await scene.servers.origin()
        async with steady(scene.load, TASKS_PER_SECOND, TASK_SECONDS):
            for number, name in zip(range(1, rounds + 1), itertools.cycle(TURNS), strict=False):
                is_long = number % LONG_EVERY == 1
                told, end = await _drain(scene, name, is_long=is_long)
                print(f"drain: {number}, {told}{', long tasks' if is_long else ''}: {end}", flush=True)
                ends.append(end)
                await scene.start(told)
        await scene.all_done()
        await scene.service.check()
        counts = {
            "tasks": len(scene.load.accepted) + 1,  # and the first one, of the setting up
            "completed": await scene.count(DONE),
            "interrupted": await scene.count(INTERRUPTED),
            "attempts_burnt": await scene.count(BURNT),
            "losses": await scene.count(LOST),
        }
        forced = [await _second_signal(scene) for _ in range(SECOND_SIGNALS)]
    seconds = [end.seconds for end in ends]
    return {
        **origin,
        "rounds": rounds,
        "grace_seconds": GRACE_SECONDS,
        "median_seconds": round(median(seconds), 2),
        "worst_seconds": round(max(seconds), 2),
        "exit_codes": _codes(ends),
        **counts,
        "second_signal": {
            "rounds": SECOND_SIGNALS,
            "worst_seconds": round(max(end.seconds for end in forced), 2),
            "exit_codes": _codes(forced),
        },
    }


def _codes(ends: list[Ended]) -> dict[str, int]:
    return {str(code): count for code, count in Counter(end.code for end in ends).items()}


async def _drain(scene: Scene, name: str, *, is_long: bool) -> tuple[str, Ended]:
    """Tell a process to end while it works; `is_long` gives a worker more than the grace has room for."""
    if is_long:
        name = await _give(scene, "work.do", "long", seconds=LONG_SECONDS)
    if name.startswith("worker"):
        await eventually(lambda: _begun(scene, name, "-", TASK_SECONDS) >= BUSY, PATIENCE_SECONDS)
    return name, await _told(scene.parts[name])


async def _second_signal(scene: Scene) -> Ended:
    """Tell a worker twice; what it runs does not end by itself."""
    name = await _give(scene, "work.gated", "gated")
    process = scene.parts[name]
    process.signal(signal.SIGTERM)
    await eventually(lambda: '"draining"' in process.text(), seconds=PATIENCE_SECONDS)
    ended = await _told(process)
    await scene.start(name)
    return ended


async def _give(scene: Scene, kind: str, note: str, **payload: object) -> str:
    """Submit long tasks; the worker that has begun some."""
    since = time.monotonic()
    await asyncio.gather(*(scene.load.submit(kind, note=note, **payload) for _ in range(LONG_TASKS)))
    workers = [name for name in PARTS if name.startswith("worker")]

    def busy() -> list[str]:
        return [name for name in workers if _begun(scene, name, note, time.monotonic() - since)]

    return (await eventually(busy, PATIENCE_SECONDS))[0]


def _begun(scene: Scene, name: str, note: str, seconds: float) -> int:
    """Count what a worker has begun in the last `seconds`."""
    since, pid = time.monotonic() - seconds, scene.parts[name].pid
    lines = scene.service.effects()
    return sum(line[2] == note and int(line[4]) == pid and float(line[3]) > since for line in lines)


async def _told(process: Process) -> Ended:
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_SECONDS):
        code = await process.stop(PATIENCE_SECONDS)
    return Ended(code, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
