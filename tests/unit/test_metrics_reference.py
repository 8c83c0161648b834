"""documents/operations/metrics.md names every metric, check and alert as it is, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.monitoring import Metrics, Progress
from pipeline.monitoring.health import examine
from pipeline.monitoring.metrics import OUTCOMES
from pipeline.settings import Role, Settings
from pipeline.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = (Path(__file__).parents[2] / "documents" / "operations" / "metrics.md").read_text()
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def shown(role: Role) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, type and labels of what a role shows."""
    metrics = Metrics(frozenset({role}), ["echo"])
    labels = {each._name: each._labelnames for each in vars(metrics).values() if hasattr(each, "_labelnames")}
    for family in metrics.registry.collect():
        if family.name.startswith("baton_"):
            yield family.name, family.type, tuple(labels[family.name])


def documented(role: Role) -> list[tuple[str, str, tuple[str, ...]]]:
    """What the section of a role says."""
    section = REFERENCE.split(f"\n### {role.value.capitalize()}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| `(baton_\w+?)(?:_total)?` \| (\w+) \| (.*?) ?\|", section, re.MULTILINE)
    return [(name, kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows]


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.RELAY, Role.WORKER, Role.JANITOR])
def test_a_role_shows_the_metrics_of_its_section(role: Role) -> None:
    assert sorted(documented(role)) == sorted(shown(role))


def test_the_dead_letter_role_shows_none() -> None:
    assert list(shown(Role.DEAD_LETTER)) == []


def test_every_name_in_the_page_is_one_that_prometheus_sees() -> None:
    seen = {name + suffix for role in Role for name, kind, _ in shown(role) for suffix in SUFFIXES[kind]}
    histograms = {name for role in Role for name, kind, _ in shown(role) if kind == "histogram"}
    assert set(re.findall(r"baton_\w+", REFERENCE)) - seen - histograms == set()


def test_every_outcome_is_explained() -> None:
    [row] = [line for line in REFERENCE.splitlines() if line.startswith("| `baton_runs_ended_total`")]
    assert [outcome for outcome in OUTCOMES if f"`{outcome}`" not in row] == []


async def test_every_check_is_in_the_table_of_health() -> None:
    table = REFERENCE.split("| Role | Check | Behind when |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([a-z-]+) \| (.*?) \|", table, re.MULTILINE)
    told = {(role, check) for role, checks in rows for check in re.findall(r"`(.*?)`", checks)}
    health = await examine(Settings(), Progress(ManualClock()))
    found = {(each.role.value, re.sub("tasks.(high|medium|low)", "…", each.check)) for each in health.checks}
    assert told == found
