"""`make figures`: writes what the reports hold into documents/guarantees.md."""

from __future__ import annotations

import sys
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from tests.chaos.harness.reports import REPORTS, ROOT
from tests.support.markdown import between, paragraph, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

DOCUMENT = ROOT / "documents" / "guarantees.md"
BEGIN, END = "<!-- figures: made by `make figures`, not by hand -->", "<!-- end of figures -->"

Report = dict[str, Any]


def written(document: str, reports: Path) -> str:
    """Put the figures between their marks."""
    return between(document, BEGIN, END, figures(reports))


def figures(reports: Path) -> str:
    """Write all tables for which there is a report."""
    found = {file.stem: msgspec.json.decode(file.read_bytes()) for file in sorted(reports.glob("*.json"))}
    runs = [found[seed] for seed in sorted((name for name in found if name.isdigit()), key=int)]
    rest = (part for name, tell in MEASURED.items() if name in found for part in tell(found[name]))
    return "\n".join([*_runs(runs), *rest])


def _runs(runs: Sequence[Report]) -> Iterable[str]:
    if not runs:
        return
    yield from _sum(runs)
    yield table(
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
    yield paragraph(
        "Seconds from the end of a fault until a task submitted after it was done, other faults going on:"
    )
    yield table(("fault", "times", "median", "worst"), _recoveries(runs))


def _sum(runs: Sequence[Report]) -> Iterable[str]:
    bit = sum(run["faults_that_bit"] for run in runs)
    tasks = sum(run["tasks"] for run in runs)
    commits = sorted({run["commit"] for run in runs})
    versions = runs[-1]["versions"]
    minutes = runs[0]["seconds"] / 60
    yield paragraph(
        f"Chaos (`make chaos`): {len(runs)} runs of {minutes:g} minutes, each from a seed: {tasks:,} tasks,"
        f" and {bit} faults that are known to have bitten. Commit {', '.join(commits)};"
        f" PostgreSQL {versions['postgresql']}, RabbitMQ {versions['rabbitmq']}, Python {versions['python']},"
        f" {versions['cores']} cores for all."
    )


def _recoveries(runs: Sequence[Report]) -> Iterable[tuple[object, ...]]:
    for fault in sorted({fault for run in runs for fault in run["faults_by_class"]}):
        times = sum(run["faults_by_class"].get(fault, 0) for run in runs)
        seen = [run["recovery_seconds"][fault] for run in runs if fault in run["recovery_seconds"]]
        medians = [each["median"] for each in seen if each["median"] is not None]
        worst = [each["worst"] for each in seen if each["worst"] is not None]
        yield fault, times, f"{median(medians):.1f}" if medians else "", f"{max(worst):.1f}" if worst else ""


def _recovery(report: Report) -> Iterable[str]:
    yield paragraph(
        f"Recovery (`make recovery`, commit {report['commit']}): settings as shipped,"
        f" {report['tasks_per_second']:g} tasks a second. Seconds from the death, or from the return of the"
        " server:"
    )
    yield table(
        ("what", "times", "median", "worst", "target"),
        (
            (
                what,
                seen["runs"],
                f"{seen['median_seconds']:.1f}",
                f"{seen['worst_seconds']:.1f}",
                f"{seen['target_seconds']:g}" if "target_seconds" in seen else "",
            )
            for what, seen in report["scenarios"].items()
        ),
    )


def _false_deaths(report: Report) -> Iterable[str]:
    yield paragraph(
        f"False deaths (`python -m tests.chaos.harness.recovery --load-minutes {report['minutes']:g}`, commit"
        f" {report['commit']}): in {report['minutes']:g} minutes on cores that were busy all the time,"
        f" {report['workers']} workers did {report['tasks']:,} tasks, some of which hold up the event loop."
        f" The longest silence of a worker was {report['longest_silence_seconds']} s;"
        f" {report['declared_dead']} were declared dead, {report['losses']} losses counted."
    )


def _drain(report: Report) -> Iterable[str]:
    second = report["second_signal"]
    yield paragraph(
        f"Drain (`make drain`, commit {report['commit']}): a process was told to end {report['rounds']} times"
        f" under load. Of {report['tasks']:,} tasks {report['completed']:,} were COMPLETED,"
        f" {report['interrupted']} of them interrupted and run again; {report['attempts_burnt']} attempts and"
        f" {report['losses']} losses were counted. Exit codes: {_codes(report)}. It took"
        f" {report['median_seconds']:.1f} s at the median and {report['worst_seconds']:.1f} s at worst, of"
        f" which DRAIN_SECONDS={report['grace_seconds']:g} is what a handler is given. A second signal ended"
        f" a process within {second['worst_seconds']:.1f} s; exit codes: {_codes(second)}."
    )


def _codes(report: Report) -> str:
    return ", ".join(f"{code} ({times} times)" for code, times in report["exit_codes"].items())


def _soak(report: Report) -> Iterable[str]:
    windows = report["windows"]
    start, end = (windows[each]["tasks_per_second"] for each in ("start", "end"))
    yield paragraph(
        f"Soak (`make soak`, commit {report['commit']}): {report['seconds'] / 60:g} minutes at"
        f" {report['rate_tasks_per_second']:,} tasks a second, 70 % of the"
        f" {report['capacity_tasks_per_second']:,} that the machine could do; {report['accepted']:,} tasks."
        f" The end was at {end / start:.0%} of the start. What was left was done in"
        f" {report['drained_after_seconds']:.1f} s. The tables at their most:"
    )
    yield table(
        ("while", "tasks per second", "latency ms, median", "worst", "dead rows", "MiB"),
        (
            (
                name.replace("_", " "),
                f"{window['tasks_per_second']:,}",
                *(f"{window['latency_milliseconds'][each]:,.0f}" for each in ("median", "worst")),
                *(_each_table(window, each) for each in ("dead_rows", "mib")),
            )
            for name, window in windows.items()
        ),
    )
    yield from _memory(report["memory_mib"]["soaking"])


def _each_table(window: Report, column: str) -> str:
    return ", ".join(f"{name} {table[column]:,.0f}" for name, table in window["tables"].items())


def _overload(report: Report) -> Iterable[str]:
    posting, memory, low = report["posting"], report["memory_mib"], report["low_limit"]
    accepted, refused = (sum(posting[answer].values()) for answer in ("accepted", "refused"))
    messages = sum(report["messages_at_the_broker"].values())
    first = sorted(low["waiting_when_first_refused"].items(), key=lambda each: int(each[1]))
    yield paragraph(
        f"Overload (`make overload`, commit {report['commit']}): {report['tasks']:,} tasks were posted while"
        f" no worker lived, {posting['tasks_per_second']:,} a second; {accepted:,} were accepted,"
        f" {refused:,} refused. They waited in {messages:,} messages. The two workers that returned did"
        f" {report['working']['tasks_per_second']:,} a second, and all were COMPLETED. With"
        f" MAX_WAITING_TASKS={low['limit']} the first refusals came at"
        f" {', '.join(f'{waiting:,} waiting for {priority}' for priority, waiting in first)}. While the last"
        " nine tenths were posted:"
    )
    yield from _memory(memory["posting"])
    yield paragraph("While the workers were back:")
    yield from _memory(memory["working"])


def _memory(growth: Report) -> Iterable[str]:
    yield table(
        ("memory in MiB (PSS, shared memory apart)", "first quarter", "last quarter", "most"),
        (
            (name, *(grown[column] for column in ("first_quarter_mib", "last_quarter_mib", "most_mib")))
            for name, grown in growth.items()
        ),
    )


MEASURED: Mapping[str, Callable[[Report], Iterable[str]]] = {
    "recovery": _recovery,
    "false-deaths": _false_deaths,
    "drain": _drain,
    "overload": _overload,
    "soak": _soak,
}
"""How the report of each measurement is told, in the order of the document."""


def main() -> int:
    """Write the document anew."""
    DOCUMENT.write_text(written(DOCUMENT.read_text(), REPORTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
