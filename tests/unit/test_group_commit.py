"""Many small writes as few large ones: nobody waits for ever, and no error hits the innocent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from storage.errors import (
    Closed,
    LockTimeout,
    OutcomeUnknown,
    Overloaded,
    Refused,
    StorageError,
    Unavailable,
)
from storage.group_commit import GroupCommit
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence


class Writer:
    """Doubles numbers, one group at a time, each held until `go` is set."""

    def __init__(self, *, held: bool = False) -> None:
        self.groups: list[list[int]] = []
        self.failures: list[BaseException] = []
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.groups.append(list(items))
        await self.go.wait()
        if self.failures:
            raise self.failures.pop(0)
        if 13 in items:
            raise Refused("thirteen")
        return [item * 2 for item in items]


async def add_all(commit: GroupCommit[int, int], items: Sequence[int]) -> list[int | BaseException]:
    return await asyncio.gather(*(commit.add(item) for item in items), return_exceptions=True)


async def test_a_group_is_what_came_during_the_last_write() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer)
    adding = asyncio.create_task(add_all(commit, [1]))
    await eventually(lambda: writer.groups)
    more = asyncio.create_task(add_all(commit, [2, 3, 4]))
    await eventually(lambda: commit.waiting == 4)
    writer.go.set()
    assert (await adding, await more) == ([2], [4, 6, 8])
    assert writer.groups == [[1], [2, 3, 4]]
    assert commit.waiting == 0


async def test_refused_data_is_found_by_halves_and_hits_only_its_owner() -> None:
    commit = GroupCommit(Writer())
    answers = await add_all(commit, [1, 2, 13, 4])
    assert [answers[0], answers[1], answers[3]] == [2, 4, 8]
    assert isinstance(answers[2], Refused)


@pytest.mark.parametrize("failure", [OutcomeUnknown("lost"), Unavailable("away")])
async def test_an_unknown_outcome_is_repeated_whole(failure: Exception) -> None:
    writer = Writer()
    writer.failures = [failure]
    assert await add_all(GroupCommit(writer), [1, 2, 3]) == [2, 4, 6]
    assert writer.groups == [[1, 2, 3], [1, 2, 3]]


async def test_a_panic_of_the_driver_reaches_every_waiter_and_frees_the_writer() -> None:
    class Panic(BaseException):
        pass

    writer = Writer()
    writer.failures = [Panic("rust")]
    commit = GroupCommit(writer)
    assert [type(answer) for answer in await add_all(commit, [1, 2])] == [Refused, Refused]
    assert await commit.add(3) == 6


async def test_too_much_waiting_is_refused_at_the_door() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer, waiting_rows=2, waiting_bytes=10)
    waiting = [asyncio.create_task(commit.add(1, 5))]
    await eventually(lambda: commit.waiting == 1)
    with pytest.raises(Overloaded):
        await commit.add(2, 6)
    waiting.append(asyncio.create_task(commit.add(2, 5)))
    await eventually(lambda: commit.waiting == 2)
    with pytest.raises(Overloaded):
        await commit.add(3)
    writer.go.set()
    assert await asyncio.gather(*waiting) == [2, 4]


async def test_a_group_is_bounded_in_items_and_in_bytes() -> None:
    writer = Writer()
    commit = GroupCommit(writer, most_rows=3, most_bytes=10)
    await asyncio.gather(*(commit.add(number, 4) for number in range(7)))
    assert [len(group) for group in writer.groups] == [2, 2, 2, 1]


async def test_a_second_writer_helps_where_a_full_group_waits() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer, most_rows=3, writers=2)
    waiting = [asyncio.create_task(commit.add(1))]
    await eventually(lambda: writer.groups == [[1]])
    waiting += [asyncio.create_task(commit.add(number)) for number in (2, 3)]
    await eventually(lambda: commit.waiting == 3)
    assert writer.groups == [[1]]  # two rows are no full group: they wait, and gather
    waiting += [asyncio.create_task(commit.add(number)) for number in range(4, 9)]
    await eventually(lambda: commit.waiting == 8)
    assert writer.groups == [[1], [2, 3, 4]]
    writer.go.set()
    assert await asyncio.gather(*waiting) == [number * 2 for number in range(1, 9)]
    assert commit.waiting == 0


async def test_whatever_many_writers_leave_is_written_by_the_last() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer, most_rows=2, writers=3)
    waiting = [asyncio.create_task(commit.add(number)) for number in range(8)]
    await eventually(lambda: len(writer.groups) == 3)
    waiting.append(asyncio.create_task(commit.add(8)))
    await asyncio.sleep(0)
    writer.go.set()
    assert await asyncio.gather(*waiting) == [number * 2 for number in range(9)]
    assert await commit.add(9) == 18
    await commit.close(1.0)


async def test_all_writers_are_waited_for_and_then_cancelled() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer, most_rows=1, writers=2)
    adding = asyncio.create_task(add_all(commit, [1, 2, 3]))
    await eventually(lambda: len(writer.groups) == 2)
    await commit.close(0.01)
    assert [type(answer) for answer in await adding] == [Closed, Closed, Closed]


async def test_an_item_weighs_its_rows_and_is_not_divided() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer, most_rows=3, waiting_rows=10)
    waiting = [asyncio.create_task(commit.add(number, rows=number)) for number in (1, 4, 2, 1, 1)]
    await eventually(lambda: commit.waiting == 9)
    with pytest.raises(Overloaded):
        await commit.add(9, rows=2)
    writer.go.set()
    assert await asyncio.gather(*waiting) == [2, 8, 4, 2, 2]
    assert writer.groups == [[1], [4], [2, 1], [1]]
    assert commit.waiting == 0


async def test_a_waiter_that_leaves_does_not_stop_its_write() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer)
    leaving = asyncio.create_task(commit.add(1))
    await eventually(lambda: writer.groups)
    leaving.cancel()
    writer.go.set()
    assert await commit.add(2) == 4
    assert writer.groups == [[1], [2]]
    assert commit.waiting == 0


async def test_close_writes_what_waits_and_takes_nothing_more() -> None:
    writer = Writer(held=True)
    commit = GroupCommit(writer)
    waiting = asyncio.create_task(commit.add(1))
    await eventually(lambda: writer.groups)
    closing = asyncio.create_task(commit.close(5.0))
    await asyncio.sleep(0)
    with pytest.raises(Closed):
        await commit.add(2)
    writer.go.set()
    await closing
    assert await waiting == 2


async def test_close_after_the_grace_answers_every_waiter_even_in_the_middle_of_halving() -> None:
    first_halves = asyncio.Event()

    async def write(items: Sequence[int]) -> list[int]:
        if len(items) == 4:
            raise Refused("somebody")
        first_halves.set()
        await asyncio.Event().wait()
        return []

    commit = GroupCommit(write)
    waiting = asyncio.create_task(add_all(commit, [1, 2, 3, 4]))
    await first_halves.wait()
    late = asyncio.create_task(commit.add(5))
    await eventually(lambda: commit.waiting == 5)
    await commit.close(0.0)
    async with asyncio.timeout(2):
        answers = [*await waiting, *await asyncio.gather(late, return_exceptions=True)]
    assert [type(answer) for answer in answers] == [Closed] * 5


async def test_close_answers_every_waiter_while_the_second_half_is_written() -> None:
    second_half = asyncio.Event()

    async def write(items: Sequence[int]) -> list[int]:
        if 13 in items and len(items) > 1:
            raise Refused("somebody")
        if 13 in items:
            second_half.set()
            await asyncio.Event().wait()
        return list(items)

    commit = GroupCommit(write)
    waiting = asyncio.create_task(add_all(commit, [1, 2, 13, 4]))
    await second_half.wait()
    await commit.close(0.0)
    async with asyncio.timeout(2):
        first, second, guilty, last = await waiting
    assert (first, second, type(guilty), type(last)) == (1, 2, Closed, Closed)
    assert commit.waiting == 0


async def test_an_unknown_outcome_of_a_half_is_repeated_as_that_half() -> None:
    writer = Writer()
    writer.failures = [Refused("somebody"), OutcomeUnknown("lost")]
    assert await add_all(GroupCommit(writer), [1, 2, 3, 4]) == [2, 4, 6, 8]
    assert writer.groups == [[1, 2, 3, 4], [1, 2], [1, 2], [3, 4]]


async def test_any_other_failure_reaches_every_waiter_of_the_group_and_no_other() -> None:
    writer = Writer()
    writer.failures = [LockTimeout("locked")]
    commit = GroupCommit(writer, most_rows=2)
    answers = await add_all(commit, [1, 2, 3])
    assert [type(answer) for answer in answers] == [LockTimeout, LockTimeout, int]


@pytest.mark.parametrize("answers", [[], [1], [1, 2, 3]])
async def test_a_write_that_gives_too_few_or_too_many_answers_leaves_nobody_waiting(
    answers: list[int],
) -> None:
    async def write(_items: Sequence[int]) -> list[int]:
        return answers

    async with asyncio.timeout(2):
        told = await add_all(GroupCommit(write), [1, 2])
    assert [type(answer) for answer in told] == [StorageError, StorageError]
