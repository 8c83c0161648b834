"""Figures over several rounds."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.results import Series

Found = TypeVar("Found")

ONLY_WHOLE = 100


class Spread(NamedTuple):
    """The median of all rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Sum up."""
        rising = sorted(values)
        return cls(median(rising), rising[0], rising[-1])

    def __str__(self) -> str:
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"


def spread(series: Series[Found], value: Callable[[Found], float]) -> Spread:
    """Sum up a figure over the rounds of a measurement."""
    return Spread.of(value(each) for each in series.rounds)


def number(value: float) -> str:
    """Write no digit that says nothing."""
    if abs(value) >= ONLY_WHOLE:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3g}"
