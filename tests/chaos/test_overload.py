"""`make overload` on a small scale, and what it measures with."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.chaos.harness.memory import Taken, children_of_all, growth_of, taken_by, with_children
from tests.chaos.harness.overload import overload
from tests.chaos.harness.posting import mixed

if TYPE_CHECKING:
    from pathlib import Path

TASKS = 2000


async def test_what_is_accepted_while_nobody_works_is_done_and_low_is_refused_first(tmp_path: Path) -> None:
    found = await overload(TASKS, tmp_path, janitor_seconds=1.0)

    # So little is posted that the servers still warm up: their memory is for `make overload` to judge.
    checks = {name: held for name, held in found.checks.items() if "did not grow" not in name}
    assert [name for name, held in checks.items() if not held] == []
    assert len(checks) >= 10
    assert found.seen["posting"]["accepted"].total() == TASKS


@pytest.mark.parametrize("tasks", [1, 990, 995, 1000, 2500])
def test_as_many_tasks_are_posted_as_were_asked_for(tasks: int) -> None:
    posted = sum((request.priorities for request in mixed(tasks)), Counter[str]())

    assert posted.total() == tasks
    assert max(posted.values()) - min(posted.values()) <= 1 or tasks < 3


@pytest.mark.parametrize(
    ("samples", "log_mib", "flat"),
    [
        ([100.0] * 8, 0.0, True),
        ([100.0, 300.0, 300.0, 125.0], 0.0, True),
        ([90.0, 1, 1, 116], 0.0, False),
        ([90.0, 1, 1, 116], 2.0, True),
        ([90.0, 1, 1, 118], 2.0, False),
    ],
)
def test_growth_is_from_the_first_quarter_to_the_last(
    samples: list[float], log_mib: float, flat: bool
) -> None:
    assert growth_of([Taken(own, shared_mib=7.0) for own in samples], log_mib).flat is flat


def test_a_process_takes_memory_and_one_that_is_gone_takes_none() -> None:
    before = taken_by([os.getpid()])
    own, shared = bytearray(64 << 20), mmap.mmap(-1, 32 << 20)
    for memory in (own, shared):
        memory[::4096] = b"x" * (len(memory) // 4096)
    after = taken_by([os.getpid(), 2**22])

    assert 60 < after.own_mib - before.own_mib < 70
    assert 30 < after.shared_mib - before.shared_mib < 34


def test_a_process_is_below_its_parent() -> None:
    assert os.getpid() in with_children(os.getppid(), children_of_all())
