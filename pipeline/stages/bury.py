"""Keeps what the messages of the DLQ are evidence of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pipeline.clock import MonotonicClock
from pipeline.flow import Stage
from pipeline.references import Undecodable, decode
from storage.errors import LockTimeout, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from pipeline.broker import Delivery
    from pipeline.clock import Clock
    from pipeline.ports import DeadLetters

log = structlog.get_logger()

AGAIN_SECONDS = 1.0


class Bury(Stage["Delivery", None]):
    """Decides over a message of the DLQ by the database, never by its headers.

    FAILED under that dispatch is kept; NEW or PENDING is sent again, since a message over the delivery
    limit takes live references with it; what nobody can decode is kept as raw bytes.
    While the database is away it asks again and keeps the message: every return is counted, and a message
    returned to the DLQ too often is dropped.
    """

    def __init__(self, dead_letters: DeadLetters, clock: Clock | None = None) -> None:
        self._dead_letters = dead_letters
        self._clock = clock or MonotonicClock()

    async def __call__(self, delivery: Delivery) -> None:
        """Bury one message, as often as it takes."""
        while True:
            try:
                return await self._bury(delivery)
            except (Unavailable, OutcomeUnknown, LockTimeout) as error:
                log.warning("burial repeated", error=str(error))
            await self._clock.sleep(AGAIN_SECONDS)

    async def _bury(self, delivery: Delivery) -> None:
        try:
            references = decode(delivery.body)
        except Undecodable as error:
            await self._dead_letters.bury_undecodable(delivery.body, delivery.headers, str(error))
            log.warning("undecodable message kept as a dead letter", error=str(error))
            return
        sent = await self._dead_letters.bury(references)
        if sent:
            log.warning("found waiting tasks in the DLQ, sent again", tasks=sent)
