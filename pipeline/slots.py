"""A worker's book of what it holds: one slot per running handler, reserved before the claim.

A slot is free when its handler has ended; the run is held on until its verdict is durable. So the next runs
are claimed while verdicts are written. And some are claimed ahead, for slots that will be free when the claim
is answered: with short handlers, slots stood empty for a third of the time. No more than twice as many runs
are held as there are slots.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Protocol

from pipeline.clock import MonotonicClock
from storage.model import Priority

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.clock import Clock
    from storage.model import Reference, Run


RATE_SECONDS = 1.0
"""Over how long it is counted how many handlers end: over less, many of a second each that end together would
look like a stream of short ones.
"""

GATHER_SECONDS = 0.02
"""How long slots are let come free for one claim while all have work: claims of a few each took twice as much
of the machine for a task.
"""


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

    def __init__(self, count: int, clock: Clock | None = None) -> None:
        self.count = count
        self._clock = clock or MonotonicClock()
        self._held: dict[Reference, _Held] = {}
        self._taken = self._busy = self._ahead = 0
        self._most_free = count
        self._ends, self._ends_per_second = 0, 0.0
        self._counted_from = self._clock.now()
        self.claimed_through: dict[Priority, datetime] = {}
        self.released = asyncio.Event()

    @property
    def free(self) -> int:
        """How many references may be reserved more, for slots that are free or will soon be."""
        return max(0, min(self.count + self._ahead - self._taken, 2 * self.count - len(self._held)))

    @property
    def worth_a_claim(self) -> bool:
        """Whether so many are free that they should be claimed for at once."""
        return self.free > min(int(self._ends_per_second * GATHER_SECONDS), self._ahead // 2)

    @property
    def vacant(self) -> int:
        """How many handlers may be started more."""
        return self.count - self._busy

    @property
    def used(self) -> int:
        """How many slots have a handler under way, or a reference that is being claimed for them."""
        return min(self.count, self._taken)

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
            if not held.ended:
                self._leave(held)
            self._free_again()

    def start(self, run: Run, running: Stoppable) -> None:
        """Note what a claimed run is stopped by, and how far its queue has been claimed."""
        held = self._held[run.reference]
        held.running = running
        self._busy += 1
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
            self._ends += 1
            self._leave(held)
            self._free_again()

    def _leave(self, held: _Held) -> None:
        self._taken -= 1
        self._busy -= held.running is not None

    def claimed(self, seconds: float) -> None:
        """Note how long a claim took; for twice that, since some take longer, it is claimed ahead."""
        now = self._clock.now()
        if (passed := now - self._counted_from) >= RATE_SECONDS:
            self._ends_per_second = self._ends / passed
            self._ends, self._counted_from = 0, now
        self._ahead = min(self.count, int(self._ends_per_second * (2 * seconds + GATHER_SECONDS)))

    def claim_no_more_ahead(self) -> None:
        """Forget how fast handlers ended: some that were claimed ahead have waited in vain."""
        self._ahead = self._ends = 0
        self._ends_per_second = 0.0

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
