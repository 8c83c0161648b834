"""What a measurement asks of the database and of whoever watches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from storage.measurements import Counters, End, Server


class Measurements(Protocol):
    """Reads of the database that the measured service writes; all raise the errors of storage.errors."""

    async def clock_seconds(self) -> float:
        """Read the database's clock, in seconds since 1970."""

    async def server(self) -> Server:
        """Tell what is measured."""

    async def counters(self) -> Counters:
        """Read the counters of the whole server."""

    async def running(self, task_ids: Sequence[UUID]) -> bool:
        """Tell whether any of up to a thousand tasks has not ended."""

    async def ends(self, task_ids: Sequence[UUID]) -> dict[UUID, End]:
        """Tell where up to a thousand tasks are; unknown ids are left out."""

    async def tasks_without(self, tag: str, from_seconds: float, to_seconds: float) -> int:
        """Count the tasks that came between two moments of the database's clock without this tag."""


class Progress(Protocol):
    """Hears how far a measurement is."""

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        """Note that so much of a stage is done."""


def unwatched(stage: str, done: float, total: float) -> None:
    """Stand for nobody who watches."""
