"""`make figures`: writes what the reports hold into documents/guarantees.md."""

from __future__ import annotations

import sys
from statistics import median
from textwrap import fill
from typing import TYPE_CHECKING, Any

import msgspec

from tests.chaos.harness.reports import REPORTS, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

DOCUMENT = ROOT / "documents" / "guarantees.md"
BEGIN, END = "<!-- figures: made by `make figures`, not by hand -->", "<!-- end of figures -->"

Report = dict[str, Any]


def written(document: str, reports: Path) -> str:
    """Put the figures between their marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{figures(reports)}\n{END}{after}"


def figures(reports: Path) -> str:
    """Write all tables for which there is a report."""
    found = {file.stem: msgspec.json.decode(file.read_bytes()) for file in sorted(reports.glob("*.json"))}
    runs = [report for name, report in sorted(found.items()) if name.isdigit()]
    return "\n".join([*_runs(runs), *_overload(found.get("overload"))])


def _runs(runs: Sequence[Report]) -> Iterable[str]:
    if not runs:
        return
    yield from _sum(runs)
    yield from _table(
        ("seed", "tasks", "per second", "faults", "overlapping", "losses", "doubled messages", "broken"),
        (
            (
                run["seed"],
                f"{run['tasks']:,}",
                run["tasks_per_second"],
                run["faults_that_bit"],
                f"{run['overlapping_share']:.0%}",
                run["losses"],
                f"{run['duplicates_delivered']:,}",
                ", ".join(run["violations"]) or "nothing",
            )
            for run in runs
        ),
    )
    yield "Seconds from the end of a fault until a task submitted after it was done, other faults going on:"
    yield ""
    yield from _table(("fault", "times", "median", "worst"), _recoveries(runs))


def _sum(runs: Sequence[Report]) -> Iterable[str]:
    bit = sum(run["faults_that_bit"] for run in runs)
    tasks = sum(run["tasks"] for run in runs)
    commits = sorted({run["commit"] for run in runs})
    versions = runs[-1]["versions"]
    minutes = runs[0]["seconds"] / 60
    yield f"{len(runs)} runs of {minutes:g} minutes, each from a seed: {tasks:,} tasks, and {bit} faults that"
    yield f"are known to have bitten. Commit {', '.join(commits)}; PostgreSQL {versions['postgresql']},"
    yield f"RabbitMQ {versions['rabbitmq']}, Python {versions['python']}, {versions['cores']} cores for all."
    yield ""


def _recoveries(runs: Sequence[Report]) -> Iterable[tuple[object, ...]]:
    for fault in sorted({fault for run in runs for fault in run["faults_by_class"]}):
        times = sum(run["faults_by_class"].get(fault, 0) for run in runs)
        seen = [run["recovery_seconds"][fault] for run in runs if fault in run["recovery_seconds"]]
        medians = [each["median"] for each in seen if each["median"] is not None]
        worst = [each["worst"] for each in seen if each["worst"] is not None]
        yield fault, times, f"{median(medians):.1f}" if medians else "", f"{max(worst):.1f}" if worst else ""


def _overload(report: Report | None) -> Iterable[str]:
    if report is None:
        return
    posting, memory, low = report["posting"], report["memory_mib"], report["low_limit"]
    accepted, refused = (sum(posting[answer].values()) for answer in ("accepted", "refused"))
    messages = sum(report["messages_at_the_broker"].values())
    first = sorted(low["waiting_when_first_refused"].items(), key=lambda each: int(each[1]))
    yield fill(
        f"Overload (`make overload`, commit {report['commit']}): {report['tasks']:,} tasks were posted while"
        f" no worker lived, {posting['tasks_per_second']:,} a second; {accepted:,} were accepted,"
        f" {refused:,} refused. They waited in {messages:,} messages. The two workers that returned did"
        f" {report['working']['tasks_per_second']:,} a second, and all were COMPLETED. With"
        f" MAX_WAITING_TASKS={low['limit']} the first refusals came at"
        f" {', '.join(f'{waiting:,} waiting for {priority}' for priority, waiting in first)}. Memory in MiB"
        " (proportional set size, shared memory apart) while the last nine tenths were posted, and while the"
        " workers were back:",
        width=112,
    )
    yield ""
    yield from _table(
        ("process", "first quarter", "last quarter", "most", "most with workers"),
        (
            (
                name,
                *(grown[column] for column in ("first_quarter_mib", "last_quarter_mib", "most_mib")),
                memory["working"][name]["most_mib"],
            )
            for name, grown in memory["posting"].items()
        ),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def main() -> int:
    """Write the document anew."""
    DOCUMENT.write_text(written(DOCUMENT.read_text(), REPORTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
