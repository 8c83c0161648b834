"""What a measurement found: frozen structs, and the same as lines for people."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from pipeline.bench.costs import Costs  # noqa: TC001 - msgspec resolves the annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

COMPLETED = "COMPLETED"
UNANSWERED = "unanswered"
MISSING = "missing"
LATE_MS = 10.0


class Latencies(msgspec.Struct, frozen=True):
    """How long things took, in milliseconds; None where there were none. Percentiles are real values."""

    count: int
    p50_ms: float | None
    p99_ms: float | None
    p99_9_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latencies:
        """Sort and count."""
        ordered = sorted(seconds)
        if not ordered:
            return cls(0, None, None, None, None)
        p50, p99, p99_9 = (percentile(ordered, part) for part in (0.5, 0.99, 0.999))
        return cls(len(ordered), *(round(each * 1000, 3) for each in (p50, p99, p99_9, ordered[-1])))


def percentile(ordered: Sequence[float], part: float) -> float:
    """Give the smallest value that at least this part of all does not exceed (the nearest rank)."""
    # 0.999 * 1000 is more than 999 in floats.
    return ordered[max(0, math.ceil(round(part * len(ordered), 6)) - 1)]


class Second(msgspec.Struct, frozen=True):
    """One second of a measurement: tasks in it, and how long those that belong to it took."""

    second: int
    tasks: int
    latency: Latencies


def timeline(happened: Iterable[float], latencies: Iterable[tuple[float, float]] = ()) -> tuple[Second, ...]:
    """Sort moments, and pairs of a moment and a latency, into seconds; all in seconds since the beginning."""
    tasks = Counter(math.floor(at) for at in happened)
    took = defaultdict[int, list[float]](list)
    for at, latency in latencies:
        took[math.floor(at)].append(latency)
    last = max([*tasks, *took], default=-1)
    first = min([*tasks, *took], default=0)
    return tuple(
        Second(second, tasks[second], Latencies.of(took[second])) for second in range(first, last + 1)
    )


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and where; `tag` marks every task that was put into the ledger for it."""

    version: str
    started_at: str
    url: str
    database: str
    postgres: str
    fsync: str
    full_page_writes: str
    tag: str
    kind: str
    payload_bytes: int
    priority: str


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="scenario"):
    """What every scenario tells.

    `answers` counts requests by the status of their answer, warm-up included; `unanswered` are those whose
    connection was lost, or that were given up. `written` tasks are in the ledger for sure; up to `unknown`
    more may be: those without an answer, and those answered 5xx. `costs` are of all that were written.
    `timeline` counts tasks by the second since the measurement began.
    """

    setup: Setup
    interrupted: bool
    answers: dict[str, int]
    written: int
    unknown: int
    costs: Costs
    timeline: tuple[Second, ...]

    def faults(self) -> list[str]:
        """Say in sentences what did not go as it should have."""
        return []

    def table(self) -> Iterator[tuple[str, str]]:
        """Say for people what was measured, what was found, and what it cost: names and values."""
        yield from setup_lines(self.setup)
        yield from self.lines()
        yield from cost_lines(self.costs)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Say what was found."""
        yield (
            "answers",
            ", ".join(f"{status}: {number:,}" for status, number in self.answers.items()) or "none",
        )


class Drain(Report, frozen=True, kw_only=True, tag="drain"):
    """Tasks that were written before, all due at one moment; `costs` are of what follows it.

    `statuses` tells where they are. `per_second` is completed tasks by the time from that moment to the last
    end, on the database's clock.
    """

    tasks: int
    statuses: dict[str, int]
    with_result: int
    seconds: float | None
    per_second: float | None
    first_end_seconds: float | None
    submission_seconds: float
    submitted_per_second: float
    submission_costs: Costs

    def table(self) -> Iterator[tuple[str, str]]:
        """Say it with the costs of the submission too."""
        yield from super().table()
        for name, value in cost_lines(self.submission_costs):
            yield f"{name} (submission)", value

    def faults(self) -> list[str]:
        """Name tasks that did not end well."""
        return [*_not_completed(self.statuses), *_without_result(self.statuses, self.with_result)]

    def lines(self) -> Iterator[tuple[str, str]]:
        """Say what was found."""
        yield "tasks", f"{self.tasks:,}"
        yield "submitted", f"{self.submitted_per_second:,.0f} tasks/s, in {self.submission_seconds:.2f} s"
        yield "ends", _counts(self.statuses) or "none"
        yield "with a result", f"{self.with_result:,}"
        yield "first end", _seconds(self.first_end_seconds, "after the due moment")
        yield "last end", _seconds(self.seconds, "after the due moment")
        yield "drained", _rate(self.per_second)
        yield from super().lines()


class Accept(Report, frozen=True, kw_only=True, tag="accept"):
    """Requests in a closed loop; figures are of `seconds` after the warm-up.

    `accepted` counts tasks answered 201 and nothing else; `latency` is of those answers.
    """

    connections: int
    batch: int
    seconds: float
    accepted: int
    accepted_per_second: float
    latency: Latencies

    def lines(self) -> Iterator[tuple[str, str]]:
        """Say what was found."""
        yield "load", f"{self.connections} connections, {self.batch} tasks a request, {self.seconds:.2f} s"
        yield "accepted", f"{self.accepted_per_second:,.0f} tasks/s"
        yield "latency", _latency(self.latency)
        yield from super().lines()


class OneAtATime(Report, frozen=True, kw_only=True, tag="latency"):
    """From POST to an answer that shows COMPLETED, with nothing else under way."""

    statuses: dict[str, int]
    latency: Latencies

    def faults(self) -> list[str]:
        """Name tasks that did not end well."""
        return _not_completed(self.statuses)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Say what was found."""
        yield "shown as", _counts(self.statuses) or "none"
        yield "latency", _latency(self.latency)
        yield from super().lines()


class Mixed(Report, frozen=True, kw_only=True, tag="mixed"):
    """Requests at a steady rate, whatever becomes of them; figures are of those due after the warm-up.

    `latency` runs from when a request was due to the end of its task, by the database; a task that had not
    ended counts with its age, which makes percentiles lower bounds. `statuses` tells where the accepted ones
    are. `behind` is how late the generator itself was, which is in the latency. `backlog` tasks were accepted
    and had not ended when the last request was due.
    """

    rate_per_second: float
    seconds: float
    connections: int
    requests: int
    accepted: int
    accepted_per_second: float
    completed_per_second: float
    statuses: dict[str, int]
    latency: Latencies
    accept_latency: Latencies
    behind: Latencies
    never_sent: int
    backlog: int
    clock_uncertainty_ms: float

    def faults(self) -> list[str]:
        """Name tasks that did not end well, or did not begin."""
        unsent = [f"{self.never_sent:,} requests found no free connection"] if self.never_sent else []
        return [*_not_completed(self.statuses), *unsent]

    def lines(self) -> Iterator[tuple[str, str]]:
        """Say what was found."""
        yield "load", f"{self.rate_per_second:,g} tasks/s for {self.seconds:.2f} s, open loop"
        yield "accepted", f"{self.accepted_per_second:,.1f} tasks/s, {self.accepted:,} of {self.requests:,}"
        yield "completed", f"{self.completed_per_second:,.1f} tasks/s"
        yield "ends", _counts(self.statuses) or "none"
        yield "latency", f"{_latency(self.latency)}, ±{self.clock_uncertainty_ms:.2f} ms of clocks"
        yield "answers after", _latency(self.accept_latency)
        yield "generator behind", _latency(self.behind)
        yield "backlog", f"{self.backlog:,} tasks when the last was due"
        yield from super().lines()


def setup_lines(setup: Setup) -> Iterator[tuple[str, str]]:
    """Say what was measured."""
    yield "service", f"{setup.url}, Baton {setup.version}"
    yield (
        "database",
        f"{setup.database}, PostgreSQL {setup.postgres}, fsync {setup.fsync},"  # noqa: ISC004
        f" full_page_writes {setup.full_page_writes}",
    )
    yield "task", f"{setup.kind}, {setup.payload_bytes:,} bytes, {setup.priority}, tag {setup.tag}"


def cost_lines(costs: Costs) -> Iterator[tuple[str, str]]:
    """Say what a task has cost."""
    if not costs.tasks:
        yield "costs", "of no task"
        return
    images = costs.full_page_image_bytes_per_task or 0.0
    yield "WAL", f"{costs.wal_bytes_per_task:,.0f} bytes/task"
    yield "of it, page images", f"up to {images:,.0f} bytes/task, {costs.full_page_images:,} in all"
    yield "commits that wrote", f"{costs.commits_per_task:.4f}/task"
    yield "SQL round trips", f"at least {costs.sql_round_trips_per_task:.4f}/task"
    for name, microseconds in costs.cpu_us_per_task.items():
        used = "unknown: it ended, or is another one now" if microseconds is None else f"{microseconds:,.1f}"
        yield f"CPU of {name}", used if microseconds is None else f"{used} µs/task"


def remarks(report: Report) -> Iterator[str]:
    """Say what readers of the figures should know: what else is in the costs, and who was late."""
    parts = [report.costs, *([report.submission_costs] if isinstance(report, Drain) else [])]
    tasks = sum(part.foreign_tasks for part in parts)
    commits = sum(part.foreign_commits for part in parts)
    meanwhile = (
        f"meanwhile {tasks:,} tasks of others came, and other databases committed {commits:,} times"
        if tasks or commits
        else "meanwhile no task of others came, and no other database committed"
    )
    if isinstance(report, Mixed) and (report.behind.p99_ms or 0.0) > LATE_MS:
        yield f"The generator was late itself, by {report.behind.p99_ms:.1f} ms at p99: it lacks CPU."
    yield f"WAL and commits are the whole server's; {meanwhile}."


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


def _not_completed(statuses: dict[str, int]) -> list[str]:
    others = {name: number for name, number in statuses.items() if name != COMPLETED}
    return [f"not every task is COMPLETED: {_counts(others)}"] if others else []


def _without_result(statuses: dict[str, int], with_result: int) -> list[str]:
    without = statuses.get(COMPLETED, 0) - with_result
    return [f"{without:,} COMPLETED tasks have no result"] if without else []


def _seconds(seconds: float | None, what: str) -> str:
    return "none" if seconds is None else f"{seconds:.3f} s {what}"


def _rate(per_second: float | None) -> str:
    return "none" if per_second is None else f"{per_second:,.0f} tasks/s"


def _latency(latency: Latencies) -> str:
    if latency.count == 0:
        return "none"
    return (
        f"p50 {latency.p50_ms:,.1f}, p99 {latency.p99_ms:,.1f}, p99.9 {latency.p99_9_ms:,.1f},"
        f" max {latency.max_ms:,.1f} ms"
    )
