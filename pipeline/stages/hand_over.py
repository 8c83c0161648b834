"""Lets the broker forget what the database holds by now."""

from __future__ import annotations

from pipeline.flow import Stage
from pipeline.stages.claim import Claimed
from storage.model import Run


class HandOver(Stage[Claimed, list[Run]]):
    """Acks the messages of a claimed wave: custody passes from the broker to the database, here."""

    async def __call__(self, claimed: Claimed) -> list[Run]:
        """Settle the wave; a broker that is gone by now will deliver again, and be refused."""
        await claimed.wave.parcel.settle(None)
        return claimed.runs
