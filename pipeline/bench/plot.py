"""Draws throughput and latency over time as an SVG file for a browser."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from leather import Chart  # type: ignore[import-untyped]  # leather ships no types

if TYPE_CHECKING:
    from pipeline.bench.report import Report, Second

WIDTH, HEIGHT = 1000, 420


def plot(report: Report) -> str:
    """Draw a chart of each second's tasks and, where there are latencies, one of theirs."""
    seconds = report.timeline
    charts = [_chart("Tasks by second", "tasks/s", seconds, {"tasks": [each.tasks for each in seconds]})]
    if any(each.latency.count for each in seconds):
        lines = {
            "p50": [each.latency.p50_ms for each in seconds],
            "p99": [each.latency.p99_ms for each in seconds],
            "max": [each.latency.max_ms for each in seconds],
        }
        charts.append(_chart("Latency by second", "ms", seconds, lines))
    height = HEIGHT * len(charts)
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": str(WIDTH),
            "height": str(height),
            "viewBox": f"0 0 {WIDTH} {height}",
        },
    )
    # The library names one font that few systems have.
    ET.SubElement(root, "style").text = "text { font-family: ui-monospace, monospace }"
    ET.SubElement(
        root, "title"
    ).text = f"baton bench {report.__struct_config__.tag}, {report.setup.started_at}"
    for number, chart in enumerate(charts):
        group = ET.SubElement(root, "g", {"transform": f"translate(0 {number * HEIGHT})"})
        group.append(chart.to_svg_group(WIDTH, HEIGHT))
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _chart(title: str, unit: str, seconds: tuple[Second, ...], lines: dict[str, list[float | None]]) -> Chart:
    chart = Chart(title)
    first, last = (seconds[0].second, seconds[-1].second) if seconds else (0, 0)
    for name, values in lines.items():
        # A step as wide as the second that it tells of; one without a value is a gap.
        points = [
            (each.second + edge, value)
            for each, value in zip(seconds, values, strict=True)
            for edge in (0, 1)
        ]
        chart.add_line(points or [(0, 0)], name=name)
    highest = max((value for values in lines.values() for value in values if value), default=0.0)
    chart.add_x_scale(min(0, first), last + 1)
    chart.add_y_scale(0, (highest * 1.1) or 1)
    chart.add_x_axis(name="seconds since the measurement began")
    chart.add_y_axis(name=unit)
    return chart
