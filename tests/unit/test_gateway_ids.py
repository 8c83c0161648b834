"""UUIDv7 as RFC 9562 lays it out."""

from __future__ import annotations

import uuid

from gateway.deadline import Late
from gateway.ids import Ids
from storage.errors import Unavailable

MOMENT_NS = 1_700_000_000_123_456_789


def _time_ms(task_id: uuid.UUID) -> int:
    return task_id.int >> 80


def test_the_layout_is_version_7_with_the_time_in_front() -> None:
    task_id = Ids(lambda: MOMENT_NS).new()

    assert task_id.version == 7
    assert task_id.variant == uuid.RFC_4122
    assert _time_ms(task_id) == 1_700_000_000_123


def test_ids_of_one_moment_rise_and_differ() -> None:
    ids = Ids(lambda: MOMENT_NS)
    made = [ids.new() for _ in range(10_000)]

    assert made == sorted(set(made))
    assert {_time_ms(each) for each in made} == {1_700_000_000_123}
    assert {each.version for each in made} == {7}


def test_ids_rise_when_the_clock_steps_back() -> None:
    now = [MOMENT_NS]
    ids = Ids(lambda: now[0])
    before = ids.new()
    now[0] -= 3_600 * 10**9

    assert ids.new() > before


def test_a_tail_that_is_used_up_moves_the_time_on() -> None:
    ids = Ids(lambda: MOMENT_NS)
    first = ids.new()
    ids._tail = (1 << 74) - 1
    last = ids.new()

    assert last > first
    assert _time_ms(last) == _time_ms(first) + 1
    assert (last.version, last.variant) == (7, uuid.RFC_4122)


def test_two_processes_do_not_meet() -> None:
    assert len({Ids(lambda: MOMENT_NS).new() for _ in range(1_000)}) == 1_000


async def test_the_time_is_the_database_s() -> None:
    ids = Ids(lambda: MOMENT_NS)

    async def an_hour_ahead() -> float:
        return 3_600.0

    assert await ids.correct(an_hour_ahead)
    assert _time_ms(ids.new()) == 1_700_000_000_123 + 3_600_000


async def test_a_database_that_is_away_leaves_the_offset_as_it_was() -> None:
    for error in (Unavailable("connection refused"), Late("no answer")):
        ids = Ids(lambda: MOMENT_NS)
        ids.offset_seconds = 5.0

        async def away(error: Exception = error) -> float:
            raise error

        assert not await ids.correct(away)
        assert ids.offset_seconds == 5.0
