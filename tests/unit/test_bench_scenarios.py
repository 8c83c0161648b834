from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.bench import bench as module
from pipeline.bench import costs, scenarios
from pipeline.bench.bench import Bench, CannotMeasure, Offset, Work
from storage.model import Priority, Status
from tests.support.answering import Reply, Request, answering
from tests.support.deployment import AHEAD_SECONDS, TOOK_SECONDS, Deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WORK = Work.of_size(100)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nobody: this deployment has reported everything, and is done with it, at once."""
    monkeypatch.setattr(costs, "STATISTICS_SECONDS", 0.0)
    monkeypatch.setattr(scenarios, "STATISTICS_SECONDS", 0.0)
    monkeypatch.setattr(scenarios, "LEAD_SECONDS", 1.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)


@asynccontextmanager
async def bench_of(deployment: Deployment, **options: Any) -> AsyncIterator[Bench]:
    async with answering(deployment.answer) as served:
        yield Bench(served.target, deployment, options.pop("work", WORK), **options)


def paths(deployment: Deployment) -> set[str]:
    return {request.url for request in deployment.asked}


def stop_after(number: int, deployment: Deployment, stop: asyncio.Event) -> Callable[[Request], None]:
    """Let a measurement be stopped when so many requests have come."""

    def count(_request: Request) -> None:
        if len(deployment.asked) == number:
            stop.set()

    return count


class TestWork:
    @pytest.mark.parametrize("payload_bytes", [11, 200, 5_000])
    def test_a_payload_has_the_size_that_was_asked_for(self, payload_bytes: int) -> None:
        assert len(Work.of_size(payload_bytes).payload) == payload_bytes

    def test_a_task_carries_name_and_tag(self) -> None:
        work = Work("echo", b'{"n":1e400}', Priority.HIGH)
        bench: Any = work.task("bench-1", run_at="x")
        assert bytes(bench.pop("payload")) == b'{"n":1e400}'
        assert bench == {
            "kind": "echo",
            "priority": "HIGH",
            "name": "baton bench",
            "tags": ["bench-1"],
            "run_at": "x",
        }

    @pytest.mark.parametrize(("payload_bytes", "most"), [(11, 1_000), (100_000, 41), (262_000, 15)])
    def test_a_batch_holds_what_the_api_takes(self, payload_bytes: int, most: int) -> None:
        assert Work.of_size(payload_bytes).most_in_batch == most


class TestClocks:
    async def test_they_are_compared_by_the_shortest_round_trip(self) -> None:
        class Slow(Deployment):
            delays = iter([0.02, 0.01, 0.0] * 10)

            async def clock_seconds(self) -> float:
                await asyncio.sleep(next(self.delays))
                return time.perf_counter() + 1_000

        offset = await module.compare_clocks(Slow())
        assert abs(offset.seconds - 1_000) <= offset.uncertainty_seconds + 1e-9
        assert offset.uncertainty_seconds < 0.005

    def test_the_more_certain_one_counts_and_a_drift_is_uncertainty(self) -> None:
        assert Offset(5.0, 0.5).agreed(Offset(5.1, 0.25)) == Offset(5.1, 0.25)
        assert Offset(5.0, 0.125).agreed(Offset(6.0, 0.25)) == Offset(5.0, 1.0)


class TestDrain:
    async def test_all_are_due_at_one_moment_and_the_rate_counts_from_there(self) -> None:
        deployment = Deployment()
        async with bench_of(deployment) as bench:
            found = await scenarios.drain(bench, 2_500, warm_up_tasks=1_200)
        warm_up = [task for task in deployment.tasks if "run_at" not in task]
        tasks = [task for task in deployment.tasks if "run_at" in task]
        assert (len(warm_up), len(tasks), len({task["run_at"] for task in tasks})) == (1_200, 2_500, 1)
        assert all(task["tags"] == [bench.tag] and task["name"] == "baton bench" for task in deployment.tasks)
        assert paths(deployment) == {"/api/v1/tasks/batch"}
        assert found.statuses == {"COMPLETED": 2_500}
        assert found.with_result == 2_500
        assert (found.first_end_seconds, found.seconds, found.per_second) == (0.001, 2.5, 1_000.0)
        assert [(each.second, each.tasks) for each in found.timeline] == [(0, 999), (1, 1_000), (2, 501)]
        assert (found.written, found.unknown, found.answers) == (3_700, 0, {"201": 5})
        assert found.submission_costs.wal_bytes_per_task == 2_000
        assert found.submission_costs.commits_per_task == 1
        assert found.costs.wal_bytes_per_task == 0
        assert found.faults() == []
        assert not found.interrupted

    async def test_one_that_fails_and_one_without_a_result_are_told(self) -> None:
        deployment = Deployment(lambda number: Status.FAILED if number == 12 else Status.COMPLETED)
        async with bench_of(deployment) as bench:
            found = await scenarios.drain(bench, 10, warm_up_tasks=10)
        assert found.statuses == {"COMPLETED": 9, "FAILED": 1}
        assert found.faults() == ["not every task is COMPLETED: 1 FAILED"]

    async def test_one_that_never_ends_is_given_up(self) -> None:
        deployment = Deployment(lambda number: Status.PENDING if number == 12 else Status.COMPLETED)
        async with bench_of(deployment, patience_seconds=0.05) as bench:
            found = await scenarios.drain(bench, 10, warm_up_tasks=10)
        assert found.faults() == ["not every task is COMPLETED: 1 PENDING"]
        assert found.costs.tasks == 9

    async def test_a_submission_that_was_too_slow_is_told_and_nothing_is_measured(self) -> None:
        deployment = Deployment()
        async with bench_of(deployment) as bench:
            with pytest.raises(CannotMeasure) as caught:
                await scenarios.drain(bench, 10, warm_up_tasks=1, lead_seconds=1e-6)
        assert re.fullmatch(
            rf"the submission took \d+\.\d s, and the tasks were due after 0\.0 s\. 10 tasks with the tag"
            rf" {bench.tag} are in the ledger, and run\. .* \(--lead-seconds\)\.",
            str(caught.value),
        )

    @pytest.mark.parametrize(
        ("reply", "told"),
        [
            (Reply(429, {"title": "Too many tasks wait already", "detail": "500000 do"}), r"\(429\): 500000"),
            (Reply(502, "no problem"), "the answer is 502"),
            (Reply(None), "the connection was lost"),
        ],
    )
    async def test_a_batch_that_is_not_taken_ends_it(self, reply: Reply, told: str) -> None:
        deployment = Deployment()
        deployment.replies = lambda request: reply if b"run_at" in request.body else None
        async with bench_of(deployment) as bench:
            with pytest.raises(CannotMeasure, match=told):
                await scenarios.drain(bench, 5_000, warm_up_tasks=10, connections=1)
        assert len(deployment.asked) == 2

    async def test_stopped_while_it_drains_it_counts_what_has_ended(self) -> None:
        stop = asyncio.Event()
        deployment = Deployment(lambda number: Status.PENDING if number > 2_500 else Status.COMPLETED)

        def hear(stage: str, done: float, _total: float) -> None:
            if (stage, done) == ("drain", 1_000):
                stop.set()

        async with bench_of(deployment, stop=stop, progress=hear) as bench:
            found = await scenarios.drain(bench, 2_000, warm_up_tasks=1_000, connections=1)
        assert found.interrupted
        assert found.statuses == {"COMPLETED": 1_500, "PENDING": 500}
        assert (found.seconds, found.per_second) == (1.5, 1_000.0)

    async def test_stopped_before_it_writes_none(self) -> None:
        stop = asyncio.Event()
        stop.set()
        deployment = Deployment()
        async with bench_of(deployment, stop=stop) as bench:
            found = await scenarios.drain(bench, 2_000)
        assert (found.written, found.seconds, found.statuses, deployment.asked) == (0, None, {}, [])


class TestAccept:
    async def test_only_201_counts_as_accepted(self) -> None:
        deployment = Deployment()
        numbers = iter(range(1_000_000))
        other = {3: Reply(429), 5: Reply(503), 7: Reply(None)}
        deployment.replies = lambda _: other.get(next(numbers) % 10)
        async with bench_of(deployment) as bench:
            found = await scenarios.accept(bench, 0.3, connections=2, warm_up_seconds=0.01)
        assert found.answers.keys() == {"201", "429", "503", "unanswered"}
        assert found.answers["201"] == found.written == len(deployment.tasks)
        assert 0 < found.accepted <= found.written
        assert found.accepted_per_second == pytest.approx(found.accepted / found.seconds, abs=0.1)
        assert found.latency.count == found.accepted
        assert sum(each.tasks for each in found.timeline) == found.accepted
        assert found.unknown == found.answers["503"] + found.answers["unanswered"]
        assert sum(found.answers.values()) == len(deployment.asked)
        assert found.costs.tasks == found.written
        assert paths(deployment) == {"/api/v1/tasks"}

    async def test_a_batch_counts_its_tasks(self) -> None:
        deployment = Deployment()
        async with bench_of(deployment) as bench:
            found = await scenarios.accept(bench, 0.1, connections=2, batch=10, warm_up_seconds=0)
        assert found.written == len(deployment.tasks) == 10 * found.answers["201"]
        assert found.accepted == 10 * found.latency.count
        assert paths(deployment) == {"/api/v1/tasks/batch"}

    async def test_stopped_it_tells_of_the_time_it_had(self) -> None:
        stop = asyncio.Event()
        deployment = Deployment()
        deployment.replies = stop_after(50, deployment, stop)
        async with bench_of(deployment, stop=stop) as bench:
            found = await scenarios.accept(bench, 3_600, connections=2, warm_up_seconds=0)
        assert found.interrupted
        assert 0 < found.seconds < 60
        assert found.accepted >= 48


class TestLatency:
    async def test_one_at_a_time_until_the_answer_shows_completed(self) -> None:
        deployment = Deployment(lambda number: Status.FAILED if number == 9 else Status.COMPLETED)
        async with bench_of(deployment) as bench:
            found = await scenarios.latency(bench, 10, warm_up_tasks=5)
        assert paths(deployment) == {"/api/v1/tasks?wait=60"}
        assert found.statuses == {"COMPLETED": 9, "FAILED": 1}
        assert found.latency.count == 9
        assert (found.written, found.costs.tasks) == (15, 15)
        assert found.faults() == ["not every task is COMPLETED: 1 FAILED"]

    async def test_what_is_not_accepted_is_told_by_its_status(self) -> None:
        deployment = Deployment()
        replies = iter([Reply(503), Reply(None)])
        deployment.replies = lambda _: next(replies, None)
        async with bench_of(deployment) as bench:
            found = await scenarios.latency(bench, 4, warm_up_tasks=0)
        assert found.statuses == {"503": 1, "unanswered": 1, "COMPLETED": 2}
        assert (found.written, found.unknown) == (2, 2)

    async def test_stopped_it_waits_for_nobody(self) -> None:
        stop = asyncio.Event()
        deployment = Deployment()
        held = Reply(held=asyncio.Event())

        def reply(_request: Request) -> Reply | None:
            if len(deployment.asked) < 4:
                return None
            stop.set()
            return held

        deployment.replies = reply
        async with bench_of(deployment, stop=stop) as bench:
            found = await scenarios.latency(bench, 100, warm_up_tasks=0)
        assert found.interrupted
        assert found.statuses == {"COMPLETED": 3, "unanswered": 1}


class TestMixed:
    async def test_latency_runs_from_the_due_moment_to_the_end_on_one_clock(self) -> None:
        deployment = Deployment()
        async with bench_of(deployment) as bench:
            found = await scenarios.mixed(bench, 200, 0.5, connections=8, warm_up_seconds=0.25)
        assert len(deployment.tasks) == found.written == 150
        assert (found.requests, found.accepted, found.statuses) == (100, 100, {"COMPLETED": 100})
        assert (found.never_sent, found.unknown) == (0, 0)
        # An hour between the clocks, and a few milliseconds of a task: the rest is this busy machine.
        assert found.latency.p50_ms is not None
        assert (
            1000 * TOOK_SECONDS - found.clock_uncertainty_ms
            <= found.latency.p50_ms
            < 1000 * AHEAD_SECONDS / 60
        )
        assert found.latency.count == found.accept_latency.count == found.behind.count == 100
        assert found.faults() == []

    async def test_what_waits_for_a_connection_counts_from_when_it_was_due(self) -> None:
        deployment, held = Deployment(), asyncio.Event()
        accepted = deployment.answer

        def hold_first(request: Request) -> Reply:
            return accepted(request)._replace(held=held)

        deployment.answer = hold_first  # type: ignore[method-assign]  # its first answer comes late
        async with bench_of(deployment) as bench:
            asyncio.get_running_loop().call_later(0.25, held.set)
            found = await scenarios.mixed(bench, 100, 0.2, connections=1, warm_up_seconds=0)
        assert (found.accepted, found.latency.count) == (20, 20)
        # All but the first were sent when it was answered, and done at once.
        assert found.latency.p50_ms is not None
        assert found.latency.p50_ms > 100

    async def test_what_does_not_end_counts_with_its_age_and_as_backlog(self) -> None:
        # The first ones: their answers come long before the end, however slow the machine.
        deployment = Deployment(lambda number: Status.PENDING if 1 <= number <= 10 else Status.COMPLETED)
        async with bench_of(deployment, patience_seconds=0.05) as bench:
            found = await scenarios.mixed(bench, 40, 1, connections=8, warm_up_seconds=0)
        assert found.statuses == {"PENDING": 10, "COMPLETED": 30}
        assert found.latency.count == 40
        assert found.backlog >= 10
        assert found.faults() == ["not every task is COMPLETED: 10 PENDING"]

    async def test_answers_other_than_201_are_no_latency(self) -> None:
        deployment = Deployment()
        numbers = iter(range(1_000))
        other = {1: Reply(429), 2: Reply(None)}
        deployment.replies = lambda _: other.get(next(numbers) % 4)
        async with bench_of(deployment) as bench:
            found = await scenarios.mixed(bench, 100, 0.4, connections=1, warm_up_seconds=0)
        assert found.answers == {"201": 20, "429": 10, "unanswered": 10}
        assert (found.requests, found.accepted, found.latency.count) == (40, 20, 20)

    async def test_stopped_it_tells_of_what_was_due(self) -> None:
        stop = asyncio.Event()
        deployment = Deployment()
        deployment.replies = stop_after(10, deployment, stop)
        async with bench_of(deployment, stop=stop) as bench:
            found = await scenarios.mixed(bench, 100, 3_600, connections=8, warm_up_seconds=0)
        assert found.interrupted
        assert 0 < found.accepted < 6_000
        assert 0 < found.seconds < 60
