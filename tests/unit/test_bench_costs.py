from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from pipeline.bench.costs import GENERATOR, STATISTICS_SECONDS, Bookkeeper, Mark, Processes
from storage.measurements import Counters
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from pathlib import Path

TICKS = 100


class Proc:
    """A folder that looks like /proc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "self").mkdir()
        (folder / "uptime").touch()

    def process(self, pid: int, parent: int, *ticks: int, started: int = 5, name: str = "postgres") -> None:
        """Write a process with its own user and system time, and those of children it waited for."""
        fields = ["S", parent, *[0] * 9, *(*ticks, 0, 0, 0, 0)[:4], *[0] * 4, started, *[0] * 30]
        (self.folder / str(pid)).mkdir(exist_ok=True)
        (self.folder / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")

    def end(self, pid: int) -> None:
        (self.folder / str(pid) / "stat").unlink()
        (self.folder / str(pid)).rmdir()

    @property
    def processes(self) -> Processes:
        return Processes(self.folder, TICKS)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


class TestProcesses:
    def test_user_and_system_time_count(self, proc: Proc) -> None:
        proc.process(10, 1, 150, 50)
        assert proc.processes.cpu_seconds(10) == 2.0

    def test_all_below_count_and_nobody_else(self, proc: Proc) -> None:
        proc.process(10, 1, 100)
        proc.process(11, 10, 20)
        proc.process(12, 11, 3)
        proc.process(13, 1, 999)
        assert proc.processes.cpu_seconds(10) == 1.23

    def test_who_came_and_went_counts_by_way_of_who_waited_for_it(self, proc: Proc) -> None:
        proc.process(10, 1, 100)
        proc.process(11, 10, 20)
        before = proc.processes.cpu_seconds(10)
        proc.end(11)
        proc.process(10, 1, 100, 0, 25, 5)
        assert proc.processes.cpu_seconds(10) - before == pytest.approx(0.1)

    def test_a_name_may_hold_anything(self, proc: Proc) -> None:
        proc.process(10, 1, 100, name="a) S 1 2 3 4 5 6 7 (b")
        assert proc.processes.cpu_seconds(10) == 1.0

    def test_who_is_not_there_was_not_started(self, proc: Proc) -> None:
        proc.process(10, 1, 100, started=77)
        assert proc.processes.started(10) == 77
        assert proc.processes.started(11) is None

    def test_linux_shows_this_process(self) -> None:
        before = Processes().cpu_seconds(os.getpid())
        assert before > 0
        assert Processes().started(os.getpid()) is not None


class TestBookkeeper:
    async def test_what_postgresql_reports_late_is_waited_for_and_the_rest_is_not(self) -> None:
        deployment, slept = Deployment(), list[float]()

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            deployment.tasks.append({"tags": []})

        mark = await Bookkeeper(deployment, {}, sleep=sleep).mark()
        assert slept == [STATISTICS_SECONDS]
        assert (mark.counters.wal_bytes, mark.counters.commits, mark.counters.commits_elsewhere) == (0, 0, 1)

    async def test_costs_are_differences_by_task(self, proc: Proc) -> None:
        proc.process(10, 1, 100)
        books = Bookkeeper(Deployment(), {"postgres": 10}, proc.processes)
        before = Mark(50.0, Counters(1_000, 10, 3, 7, 50), {GENERATOR: 1.0, "postgres": 2.0})
        after = Mark(60.0, Counters(201_000, 20, 5, 9, 75), {GENERATOR: 1.5, "postgres": 4.0})
        found = await books.costs(before, after, 100, "tag")
        assert (found.wal_bytes, found.wal_bytes_per_task) == (200_000, 2_000.0)
        assert (found.full_page_images, found.full_page_image_bytes_per_task) == (2, 163.84)
        assert found.commits_per_task == 0.1
        assert (found.sql_round_trips, found.sql_round_trips_per_task) == (25, 0.25)
        assert found.cpu_us_per_task == {GENERATOR: 5_000.0, "postgres": 20_000.0}
        assert (found.foreign_tasks, found.foreign_commits) == (0, 2)

    async def test_a_transaction_that_wrote_was_a_round_trip_though_it_is_not_reported_yet(self) -> None:
        before, after = (Mark(0.0, Counters(0, commits, 0, 0, 7), {}) for commits in (0, 6))
        found = await Bookkeeper(Deployment(), {}).costs(before, after, 2, "tag")
        assert found.sql_round_trips_per_task == 3.0

    async def test_page_images_take_no_more_than_the_log(self) -> None:
        before, after = (Mark(0.0, Counters(wal, 0, images, 0, 0), {}) for wal, images in ((0, 0), (100, 9)))
        found = await Bookkeeper(Deployment(), {}).costs(before, after, 1, "tag")
        assert found.full_page_image_bytes_per_task == 100

    async def test_tasks_of_others_are_counted(self) -> None:
        deployment = Deployment()
        deployment.tasks += [{"tags": ["bench-1"]}, {"tags": []}, {"tags": ["bench-2"]}]
        mark = Mark(0.0, Counters(0, 0, 0, 0, 0), {})
        assert (await Bookkeeper(deployment, {}).costs(mark, mark, 1, "bench-1")).foreign_tasks == 2

    async def test_no_task_has_no_costs(self) -> None:
        mark = Mark(0.0, Counters(0, 0, 0, 0, 0), {GENERATOR: 1.0})
        found = await Bookkeeper(Deployment(), {}).costs(mark, mark, 0, "tag")
        assert (found.wal_bytes_per_task, found.cpu_us_per_task) == (None, {GENERATOR: None})

    async def test_its_own_time_is_always_read(self) -> None:
        mark = await Bookkeeper(Deployment(), {}, sleep=_at_once).mark()
        assert 0 < (mark.cpu_seconds[GENERATOR] or 0) <= time.process_time()

    async def test_one_that_ended_or_is_another_now_costs_nobody_knows_what(self, proc: Proc) -> None:
        proc.process(10, 1, 100)
        proc.process(11, 1, 100, started=5)
        proc.process(12, 1, 100)
        named = {"ended": 10, "another": 11, "same": 12, "never": 13}
        books = Bookkeeper(Deployment(), named, proc.processes, _at_once)
        proc.end(10)
        proc.process(11, 1, 1, started=6)
        seconds = dict((await books.mark()).cpu_seconds)
        seconds.pop(GENERATOR)
        assert seconds == {"ended": None, "another": None, "same": 1.0, "never": None}


async def _at_once(_seconds: float) -> None:
    pass
