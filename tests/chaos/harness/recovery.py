"""`make recovery`: how soon work goes on after each kind of death, with the settings as shipped."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.harness.false_deaths import watch_over
from tests.chaos.harness.outages import OUTAGES, PARTS
from tests.chaos.harness.reports import keep
from tests.chaos.harness.scene import set_up, steady

ROUNDS = 10
TASKS_PER_SECOND = 20.0
TASK_SECONDS = 0.05
TARGETS = {
    "worker killed: its tasks run again": 10.0,
    "relay killed: what it held is published": 10.0,
}


def main() -> int:
    """Measure, write the report, and tell; the exit code is 1 where a target was missed."""
    parser = argparse.ArgumentParser(prog="make recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each death is died")
    parser.add_argument("--only", choices=OUTAGES, nargs="*", default=list(OUTAGES), help="these deaths")
    parser.add_argument("--load-minutes", type=float, default=0, help="instead: look out for false deaths")
    parser.add_argument("--keep", action="store_true", help="write the report to tests/chaos/reports")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="baton-recovery-"))
    if given.load_minutes:
        name, report = "false-deaths", asyncio.run(watch_over(folder, given.load_minutes))
        missed = report["declared_dead"] + report["losses"]
    else:
        name, report = "recovery", asyncio.run(_measure(folder, given.rounds, given.only))
        missed = sum(not scenario.get("met", True) for scenario in report["scenarios"].values())
    if given.keep:
        keep(name, report)
    shutil.rmtree(folder)
    return 1 if missed else 0


async def _measure(folder: Path, rounds: int, deaths: list[str]) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {}
    async with set_up(folder, *PARTS) as scene:
        origin = await scene.servers.origin()
        async with steady(scene.load, TASKS_PER_SECOND, TASK_SECONDS):
            for death in deaths:
                for number in range(rounds):
                    measured = await OUTAGES[death](scene)
                    await scene.calm()
                    for what, waited in measured.items():
                        seconds.setdefault(what, []).append(waited)
                        print(f"recovery: {what}, {number + 1}: {waited:.2f} s", flush=True)
        await scene.all_done()
        await scene.service.check()
        accepted = len(scene.load.accepted)
    for what, each in seconds.items():
        print(f"recovery: {what}: median {median(each):.1f} s, worst {max(each):.1f} s")
    return {
        **origin,
        "tasks_per_second": TASKS_PER_SECOND,
        "tasks": accepted,
        "scenarios": {what: _scenario(what, each) for what, each in seconds.items()},
    }


def _scenario(what: str, seconds: list[float]) -> dict[str, object]:
    target = (
        {"target_seconds": TARGETS[what], "met": max(seconds) <= TARGETS[what]} if what in TARGETS else {}
    )
    return {
        **target,
        "runs": len(seconds),
        "median_seconds": round(median(seconds), 2),
        "worst_seconds": round(max(seconds), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
