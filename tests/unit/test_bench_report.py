from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest

from pipeline.bench.costs import GENERATOR, Costs
from pipeline.bench.plot import plot
from pipeline.bench.report import (
    Accept,
    Drain,
    Latencies,
    Mixed,
    OneAtATime,
    Report,
    Second,
    Setup,
    percentile,
    remarks,
    timeline,
)

NONE = Latencies.of([])
SOME = Latencies.of([0.001, 0.002])
SVG = "{http://www.w3.org/2000/svg}"


def costs(**changes: Any) -> Costs:
    default = Costs(
        tasks=2,
        wal_bytes=5_000,
        full_page_images=1,
        commits=1,
        sql_round_trips=3,
        wal_bytes_per_task=2_500.0,
        full_page_image_bytes_per_task=2_500.0,
        commits_per_task=0.5,
        sql_round_trips_per_task=1.5,
        cpu_us_per_task={GENERATOR: 12.5, "worker": None},
        foreign_tasks=0,
        foreign_commits=0,
    )
    return msgspec.structs.replace(default, **changes)


def common(**changes: Any) -> dict[str, Any]:
    setup = Setup(
        version="0.1.0",
        started_at="2030-01-31T12:00:00+00:00",
        url="http://127.0.0.1:8000",
        database="baton",
        postgres="18.4",
        fsync="on",
        full_page_writes="on",
        tag="bench-1",
        kind="echo",
        payload_bytes=200,
        priority="LOW",
    )
    return {
        "setup": setup,
        "interrupted": False,
        "answers": {"201": 2},
        "written": 2,
        "unknown": 0,
        "costs": costs(),
        "timeline": timeline([0.5, 1.5], [(0.5, 0.001)]),
    } | changes


def accept(**changes: Any) -> Accept:
    return Accept(
        **common(**changes),
        connections=32,
        batch=1,
        seconds=10.0,
        accepted=2,
        accepted_per_second=0.2,
        latency=SOME,
    )


def drain(statuses: dict[str, int], with_result: int = 2, **changes: Any) -> Drain:
    return Drain(
        **common(**changes),
        tasks=2,
        statuses=statuses,
        with_result=with_result,
        seconds=1.5,
        per_second=1.3,
        first_end_seconds=0.5,
        submission_seconds=0.1,
        submitted_per_second=20.0,
        submission_costs=costs(wal_bytes_per_task=700.0),
    )


def mixed(**changes: Any) -> Mixed:
    figures: dict[str, Any] = {
        "rate_per_second": 1_000.0,
        "seconds": 60.0,
        "connections": 128,
        "requests": 2,
        "accepted": 2,
        "accepted_per_second": 0.1,
        "completed_per_second": 0.1,
        "statuses": {"COMPLETED": 2},
        "latency": SOME,
        "accept_latency": SOME,
        "behind": SOME,
        "never_sent": 0,
        "backlog": 0,
        "clock_uncertainty_ms": 0.2,
    }
    return Mixed(**common(), **(figures | changes))


class TestLatencies:
    @pytest.mark.parametrize(
        ("count", "part", "expected"),
        [
            (1, 0.5, 1),
            (2, 0.5, 1),
            (3, 0.5, 2),
            (100, 0.99, 99),
            (101, 0.99, 100),
            (1_000, 0.999, 999),
            (7, 0, 1),
        ],
    )
    def test_a_percentile_is_the_nearest_rank(self, count: int, part: float, expected: int) -> None:
        assert percentile(range(1, count + 1), part) == expected

    def test_they_are_sorted_and_in_milliseconds(self) -> None:
        found = Latencies.of(number / 1000 for number in range(1_000, 0, -1))
        assert found == Latencies(1_000, 500.0, 990.0, 999.0, 1_000.0)

    def test_of_nothing_there_are_none(self) -> None:
        assert Latencies(0, None, None, None, None) == NONE


class TestTimeline:
    def test_moments_are_counted_by_second_and_none_is_left_out(self) -> None:
        found = timeline([0.0, 0.9, 3.0], [(0.2, 0.002), (3.9, 0.004)])
        assert [(each.second, each.tasks, each.latency.max_ms) for each in found] == [
            (0, 2, 2.0),
            (1, 0, None),
            (2, 0, None),
            (3, 1, 4.0),
        ]

    def test_of_nothing_there_is_none(self) -> None:
        assert timeline([]) == ()

    def test_what_came_early_has_its_second(self) -> None:
        assert [each.second for each in timeline([-0.1, 0.1])] == [-1, 0]


class TestReports:
    def test_as_json_a_report_tells_its_scenario(self) -> None:
        found = msgspec.json.decode(msgspec.json.encode(accept()))
        assert found["scenario"] == "accept"
        assert found["costs"]["cpu_us_per_task"] == {GENERATOR: 12.5, "worker": None}
        assert found["timeline"][0]["latency"]["p50_ms"] == 1.0

    def test_and_is_read_again(self) -> None:
        reports = [accept(), drain({"COMPLETED": 2}), mixed()]
        one_of = Accept | Drain | Mixed | OneAtATime
        assert msgspec.json.decode(msgspec.json.encode(reports), type=list[one_of]) == reports

    def test_a_table_names_figures_and_costs(self) -> None:
        found = dict(accept().table())
        assert found["accepted"] == "0 tasks/s"
        assert found["latency"] == "p50 1.0, p99 2.0, p99.9 2.0, max 2.0 ms"
        assert found["answers"] == "201: 2"
        assert found["WAL"] == "2,500 bytes/task"
        assert found["of it, page images"] == "up to 2,500 bytes/task, 1 in all"
        assert found["CPU of load generator"] == "12.5 µs/task"
        assert found["CPU of worker"] == "unknown: it ended, or is another one now"

    def test_a_drain_has_the_costs_of_its_submission_too(self) -> None:
        found = dict(drain({"COMPLETED": 2}).table())
        assert (found["WAL"], found["WAL (submission)"]) == ("2,500 bytes/task", "700 bytes/task")

    def test_of_nothing_a_table_says_so(self) -> None:
        nothing = common(costs=costs(tasks=0), timeline=(), answers={})
        found = dict(OneAtATime(**nothing, statuses={}, latency=NONE).table())
        assert (found["latency"], found["shown as"], found["costs"]) == ("none", "none", "of no task")

    def test_faults_are_told(self) -> None:
        assert drain({"COMPLETED": 2}).faults() == []
        assert drain({"COMPLETED": 1, "FAILED": 1}, with_result=0).faults() == [
            "not every task is COMPLETED: 1 FAILED",
            "1 COMPLETED tasks have no result",
        ]
        assert mixed(never_sent=3).faults() == ["3 requests found no free connection"]

    def test_what_else_was_going_on_is_told(self) -> None:
        busy = costs(foreign_tasks=3, foreign_commits=4)
        alone, not_alone = (list(remarks(accept(costs=each))) for each in (costs(), busy))
        told = "WAL and commits are the whole server's; meanwhile no task of others came, and no other"
        assert alone == [f"{told} database committed."]
        assert "3 tasks of others came, and other databases committed 4 times" in not_alone[0]
        assert "3 tasks" in next(remarks(msgspec.structs.replace(drain({}), submission_costs=busy)))

    def test_a_generator_that_was_late_is_told(self) -> None:
        [late, _] = remarks(mixed(behind=Latencies.of([0.02])))
        assert late.startswith("The generator was late itself, by 20.0 ms at p99")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - our own


class TestPlot:
    def test_it_is_an_svg_with_axes_and_units(self) -> None:
        svg = plot(accept())
        root = ET.fromstring(svg)  # noqa: S314 - our own
        assert root.tag == f"{SVG}svg"
        assert {"tasks/s", "ms", "p50", "p99", "max"} <= set(texts(svg))
        assert texts(svg).count("seconds since the measurement began") == 2
        # It must be readable without anything from elsewhere.
        assert svg.count("http") == svg.count("http://www.w3.org/2000/svg") == 1

    def test_without_latencies_there_is_one_chart(self) -> None:
        assert "ms" not in texts(plot(drain({}, timeline=timeline([0.5]))))

    @pytest.mark.parametrize("seconds", [(), (Second(0, 5, NONE),), (Second(0, 0, NONE),)])
    def test_little_is_drawn_too(self, seconds: tuple[Second, ...]) -> None:
        assert "tasks/s" in texts(plot(accept(timeline=seconds)))

    def test_a_second_without_latencies_is_a_gap(self) -> None:
        svg = plot(accept(timeline=timeline([0.5, 1.5, 2.5], [(0.5, 0.1), (2.5, 0.1)])))
        paths = list(ET.fromstring(svg).iter(f"{SVG}path"))  # noqa: S314 - our own
        assert len(paths) == 1 + 3 * 2


def test_every_report_is_one_of_these() -> None:
    assert set(Report.__subclasses__()) == {Accept, Drain, Mixed, OneAtATime}
