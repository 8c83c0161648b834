"""`make chaos MINUTES=3 SEED=1`: one run, its check, and its report."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos.harness import checker
from tests.chaos.harness.report import report_on
from tests.chaos.harness.reports import keep
from tests.chaos.harness.run import TASKS_PER_SECOND, Scenario, run
from tests.chaos.harness.servers import private_servers


def main() -> int:
    """Run once; the exit code is 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults happen")
    parser.add_argument("--seed", type=int, default=None, help="what is drawn; without it a new one")
    parser.add_argument(
        "--tasks-per-second", type=float, default=TASKS_PER_SECOND, help="how much is submitted"
    )
    parser.add_argument("--keep", action="store_true", help="write the report to tests/chaos/reports")
    given = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    print(f"chaos: seed {seed}, {given.minutes:g} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"baton-chaos-{seed}-"))
    scenario = Scenario(seed, given.minutes * 60, tasks_per_second=given.tasks_per_second)
    began = time.monotonic()
    violations, report = asyncio.run(_run(scenario, folder))
    if given.keep:
        keep(str(seed), report)
    print(f"chaos: {_summary(report)}, in {time.monotonic() - began:.0f} s", flush=True)
    if violations:
        print(f"chaos: the history is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


async def _run(scenario: Scenario, folder: Path) -> tuple[list[checker.Violation], dict[str, Any]]:
    async with private_servers(folder) as servers:
        origin = await servers.origin()
        history = await run(scenario, folder, servers)
    violations = checker.check(history)
    if violations:
        print(checker.report(history, violations))
    return violations, report_on(history, violations, scenario, origin)


def _summary(report: dict[str, Any]) -> str:
    broken = report["violations"]
    said = "every invariant holds" if not broken else f"broken: {', '.join(broken)}"
    bit = report["faults_that_bit"]
    return f"{said}; {report['tasks']} tasks at {report['tasks_per_second']}/s, {bit} faults bit"


if __name__ == "__main__":
    sys.exit(main())
