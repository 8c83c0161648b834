"""A worker's book of what it holds: one slot per running handler, reserved before the claim.

A slot is free when its handler has ended; the run is held on until its verdict is durable. So the next runs
are claimed while verdicts are written, and no more than twice as many runs are held as there are slots.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Protocol

from storage.model import Priority

if TYPE_CHECKING:
    from datetime import datetime

    from storage.model import Reference, Run


class Stop(enum.Enum):
    """Why a run is ended before its handler returns."""

    CANCELLED = "cancelled"
    """Somebody asked for it."""
    INTERRUPTED = "interrupted"
    """The worker is stopping."""
    LOST = "lost"
    """The database says that another worker has it, or that this one is dead."""


class Stoppable(Protocol):
    """A run under way."""

    def cancel(self) -> object:
        """Stop it."""


class _Held:
    def __init__(self) -> None:
        self.running: Stoppable | None = None
        self.stop: Stop | None = None
        self.ended = False


class Slots:
    """The slots of one worker and the references in them, from before the claim until the verdict is in."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._held: dict[Reference, _Held] = {}
        self._taken = 0
        self._most_free = count
        self.claimed_through: dict[Priority, datetime] = {}
        self.released = asyncio.Event()

    @property
    def free(self) -> int:
        """How many handlers may be started more."""
        return max(0, min(self.count - self._taken, 2 * self.count - len(self._held)))

    @property
    def held(self) -> frozenset[Reference]:
        """What is reserved, running, or waits for its verdict to become durable."""
        return frozenset(self._held)

    @property
    def started(self) -> frozenset[Reference]:
        """What of it was claimed and runs, or has run."""
        return frozenset(reference for reference, held in self._held.items() if held.running is not None)

    def __contains__(self, reference: Reference) -> bool:
        """Whether a reference is held: a second message of it is a duplicate."""
        return reference in self._held

    def reserve(self, reference: Reference) -> None:
        """Take a slot for a reference that is about to be claimed."""
        self._held[reference] = _Held()
        self._taken += 1

    def release(self, reference: Reference) -> None:
        """Let go of a reference that was refused, or whose verdict is durable."""
        if held := self._held.pop(reference, None):
            self._taken -= not held.ended
            self._free_again()

    def start(self, run: Run, running: Stoppable) -> None:
        """Note what a claimed run is stopped by, and how far its queue has been claimed."""
        held = self._held[run.reference]
        held.running = running
        if run.queued_at is not None:
            newest = self.claimed_through.get(run.priority)
            self.claimed_through[run.priority] = max(newest or run.queued_at, run.queued_at)

    def stop(self, reference: Reference, why: Stop) -> None:
        """End one run early, unless its handler has ended anyway; the first reason stands."""
        held = self._held.get(reference)
        if held is None or held.running is None or held.ended or held.stop is not None:
            return
        held.stop = why
        held.running.cancel()

    def ended(self, reference: Reference) -> None:
        """Free the slot: the handler has ended, and what is under way now, its verdict, must get through."""
        held = self._held.get(reference)
        if held is not None and not held.ended:
            held.ended = True
            self._taken -= 1
            self._free_again()

    def _free_again(self) -> None:
        self._most_free = max(self._most_free, self.free)
        self.released.set()

    def stop_all(self, why: Stop) -> None:
        """End every run early."""
        for reference in self.held:
            self.stop(reference, why)

    def why(self, reference: Reference) -> Stop | None:
        """Tell why a run is being ended, None if it is not."""
        held = self._held.get(reference)
        return held.stop if held else None

    @property
    def running(self) -> int:
        """How many runs are under way, until their verdicts are durable."""
        return sum(held.running is not None for held in self._held.values())

    def most_free(self) -> int:
        """Tell the most slots that were free at once since last asked: what a relay may pack for."""
        most, self._most_free = self._most_free, self.free
        return most

    def newest(self) -> tuple[datetime | None, datetime | None, datetime | None]:
        """Tell the newest `queued_at` claimed, by priority."""
        high, medium, low = (self.claimed_through.get(priority) for priority in Priority)
        return high, medium, low
