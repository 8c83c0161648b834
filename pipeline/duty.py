"""Whether this worker may start handlers: only while the database has lately heard from it."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.clock import Clock


class Duty:
    """The identity of one boot of a worker, and how fresh its last acknowledged heartbeat is.

    A janitor declares a worker dead after a whole lease of silence. A worker that counts only half of it,
    from the moment its heartbeat was sent and by a monotonic clock, stops starting handlers long before.
    """

    def __init__(self, clock: Clock, lease_seconds: float) -> None:
        self._clock = clock
        self.lease_seconds = lease_seconds
        self.worker_id = uuid.uuid4()
        self._heard_at: float | None = None
        self._heard = asyncio.Event()

    @property
    def fresh(self) -> bool:
        """Whether a handler may start now."""
        return self._heard_at is not None and self._clock.now() - self._heard_at < self.lease_seconds / 2

    def heard(self, sent_at: float) -> None:
        """Note an acknowledged heartbeat by the time it was sent."""
        self._heard_at = sent_at
        self._heard.set()

    def declared_dead(self) -> None:
        """Begin a new life under a new id; what the old one held belongs to the janitor."""
        self.worker_id = uuid.uuid4()
        self._heard_at = None

    async def begin(self) -> uuid.UUID:
        """Wait until this worker may start handlers; the id to claim under."""
        while not self.fresh:
            self._heard.clear()
            await self._heard.wait()
        return self.worker_id
