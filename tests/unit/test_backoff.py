"""Asking again: which failures are repeated, which are answers, and how the waits grow."""

from __future__ import annotations

from itertools import islice

import pytest

from storage.backoff import backoff_seconds, until_known
from storage.errors import Closed, OutcomeUnknown, Refused, StorageError, Unavailable


class Asked:
    """Something that fails with the given errors, one after the other, and then answers."""

    def __init__(self, *errors: StorageError) -> None:
        self.errors = list(errors)
        self.told: list[StorageError] = []
        self.waits_seconds: list[float] = []

    async def ask(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    async def sleep(self, seconds: float) -> None:
        self.waits_seconds.append(seconds)


async def test_what_is_unknown_is_told_and_asked_again_after_a_wait() -> None:
    errors = (Unavailable("away"), OutcomeUnknown("no reply"))
    asked = Asked(*errors)
    answer = await until_known(asked.ask, (Unavailable, OutcomeUnknown), asked.told.append, sleep=asked.sleep)
    assert answer == "answer"
    assert asked.told == list(errors)
    assert len(asked.waits_seconds) == 2


@pytest.mark.parametrize("error", [Closed("stopping"), Refused("no")])
async def test_any_other_error_is_an_answer(error: StorageError) -> None:
    asked = Asked(Unavailable("away"), error)
    with pytest.raises(type(error)):
        await until_known(asked.ask, (Unavailable,), asked.told.append, sleep=asked.sleep)
    assert len(asked.told) == len(asked.waits_seconds) == 1


async def test_what_is_known_goes_first() -> None:
    asked = Asked(StorageError("what now"), Refused("no"))
    with pytest.raises(Refused):
        await until_known(asked.ask, (StorageError,), asked.told.append, known=(Refused,), sleep=asked.sleep)
    assert len(asked.told) == 1


def test_each_wait_is_twice_the_last_up_to_the_longest_and_less_by_half_at_most() -> None:
    for wait, longest in zip(islice(backoff_seconds(0.1, 0.5), 5), (0.1, 0.2, 0.4, 0.5, 0.5), strict=True):
        assert longest / 2 <= wait <= longest
