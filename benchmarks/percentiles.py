"""Durations, summed up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Milliseconds(msgspec.Struct, frozen=True):
    """How long something took, each so many times."""

    times: int
    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Milliseconds:
        """Sum up; the percentiles are durations that were seen (nearest rank)."""
        rising = sorted(seconds)
        if not rising:
            raise ValueError("no durations")

        def rank(share: float) -> float:
            return round(1000 * rising[max(0, math.ceil(share * len(rising)) - 1)], 3)

        return cls(times=len(rising), p50=rank(0.5), p99=rank(0.99), most=rank(1.0))
