"""The whole ledger in memory, for tests of stages: the same answers as PostgreSQL, by a clock the test moves.

`State` holds all rows; the other modules are the hands that reach into it, named for whose they are.
Each call runs without an await in between, so it is as indivisible as one statement.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.testing.ledger.client import MemorySubmissions, MemoryTasks
from pipeline.testing.ledger.janitor import MemoryDeadLetters, MemoryUpkeep
from pipeline.testing.ledger.relay import MemoryOutbox
from pipeline.testing.ledger.signals import MemorySignals
from pipeline.testing.ledger.state import State
from pipeline.testing.ledger.worker import MemoryRuns, MemoryWorkers

if TYPE_CHECKING:
    from uuid import UUID

    from pipeline.clock import Clock

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """`pipeline.ports.Ledger` without a database."""

    def __init__(self, clock: Clock) -> None:
        self.signals = MemorySignals(clock)
        self._state = State(clock, self.signals)
        self.submissions = MemorySubmissions(self._state)
        self.tasks = MemoryTasks(self._state)
        self.outbox = MemoryOutbox(self._state)
        self.runs = MemoryRuns(self._state)
        self.workers = MemoryWorkers(self._state)
        self.upkeep = MemoryUpkeep(self._state)
        self.dead_letters = MemoryDeadLetters(self._state)

    def now(self) -> datetime:
        """Tell the ledger's time: the real one at its construction, and since then that of the clock."""
        return self._state.now()

    def pause(self, queue: str) -> None:
        """Let no task of a work queue be sent or claimed until it is resumed."""
        self._state.paused.add(queue)

    def resume(self, queue: str) -> None:
        """Undo a pause."""
        self._state.paused.discard(queue)

    def disconnect(self, worker_id: UUID) -> None:
        """End a worker's connection, as the death of its process does, until its next heartbeat."""
        self._state.workers[worker_id].connected = False

    async def ready(self) -> None:
        """Return at once: memory always answers, and has no schema."""

    async def clock_offset_seconds(self) -> float:
        """Measure how far the ledger's clock is ahead of this process's."""
        return (self.now() - datetime.now(UTC)).total_seconds()
