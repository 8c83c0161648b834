"""The figures in documents/guarantees.md are what the reports hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tests.chaos.harness.figures import BEGIN, DOCUMENT, END, figures, written
from tests.chaos.harness.reports import REPORTS

if TYPE_CHECKING:
    from pathlib import Path

RUN: dict[str, Any] = {
    "seed": 7,
    "seconds": 360.0,
    "commit": "abc",
    "versions": {"postgresql": "15", "rabbitmq": "3.10", "python": "3.11", "cores": 2},
    "tasks": 12345,
    "tasks_per_second": 199.5,
    "faults_that_bit": 30,
    "overlapping_share": 0.4,
    "losses": 5,
    "duplicates_delivered": 6,
    "violations": {},
    "faults_by_class": {"kill": 3, "cut": 1},
    "recovery_seconds": {"kill": {"median": 2.04, "worst": 3.5, "faults": 3}},
}


def keep(folder: Path, name: str, report: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_bytes(msgspec.json.encode(report))


def test_without_a_report_nothing_is_said(tmp_path: Path) -> None:
    assert figures(tmp_path) == ""


def test_runs_are_added_up_and_the_worst_recovery_is_named(tmp_path: Path) -> None:
    keep(tmp_path, "7", RUN)
    worse = {"kill": {"median": 3.0, "worst": 9.96, "faults": 3}}
    keep(tmp_path, "12", {**RUN, "seed": 12, "violations": {"no_phantom": 1}, "recovery_seconds": worse})
    said = figures(tmp_path)
    assert "2 runs of 6 minutes" in said
    assert "24,690 tasks" in said
    assert "60 faults" in " ".join(said.split())
    assert "| 7 | 12,345 | 199.5 | 30 | 40% | 5 | 6 | nothing |" in said
    assert "| no_phantom |" in said
    assert "| kill | 6 | 2.5 | 10.0 |" in said
    assert "| cut | 2 |  |  |" in said
    assert said.index("| 7 |") < said.index("| 12 |")


def test_what_stands_around_the_figures_is_left(tmp_path: Path) -> None:
    keep(tmp_path, "7", RUN)
    text = written(f"before\n{BEGIN}\nold\n{END}\nafter\n", tmp_path)
    assert text.startswith(f"before\n{BEGIN}\n\nChaos")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text


def test_the_document_tells_the_reports_that_are_kept() -> None:
    document = DOCUMENT.read_text()
    assert written(document, REPORTS) == document
