"""Rates of a drain, by three starting points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from datetime import datetime


class Rates(msgspec.Struct, frozen=True):
    """Tasks a second until the last was recorded.

    Counted from when the processes were spawned, from when all said that they were up, and from the first
    recorded task. None where nobody says when he is up, and where one commit recorded all.
    """

    per_second: float
    per_second_from_first: float | None
    boot_seconds: float | None = None
    per_second_once_up: float | None = None

    @classmethod
    def of(
        cls,
        tasks: int,
        spawned_at: datetime,
        first_at: datetime,
        last_at: datetime,
        up_at: datetime | None = None,
    ) -> Rates:
        """Divide by what has passed."""

        def rate(done: int, since: datetime) -> float:
            return round(done / (last_at - since).total_seconds(), 1)

        return cls(
            per_second=rate(tasks, spawned_at),
            per_second_from_first=rate(tasks - 1, first_at) if last_at > first_at else None,
            boot_seconds=None if up_at is None else round((up_at - spawned_at).total_seconds(), 3),
            per_second_once_up=None if up_at is None else rate(tasks, up_at),
        )
