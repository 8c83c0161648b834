"""The janitor's search for what the broker has lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pipeline.broker import BrokerUnavailable
from pipeline.broker.topology import work_route
from pipeline.flow import Stage
from storage.model import Priority

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.broker import Broker
    from pipeline.ports import Upkeep

log = structlog.get_logger()

MOST_ROWS = 500
"""How many tasks one statement sends again: a false alarm must stay a small one."""


class Resend(Stage[None, None]):
    """Sends again what the broker has lost; a false alarm only doubles a message.

    Two signs: a later message of the same queue was claimed a round ago, or a queue is found empty twice,
    with nothing unclaimed at any worker, while tasks are said to have been in it since the round before.
    """

    def __init__(self, upkeep: Upkeep, broker: Broker, round_seconds: float = 10.0) -> None:
        self._upkeep = upkeep
        self._broker = broker
        self._round_seconds = round_seconds
        self._claimed_through: dict[Priority, datetime] = {}
        self._empty: set[Priority] = set()

    async def __call__(self, _tick: None) -> None:
        """Run one round over all work queues; raises BrokerUnavailable where one did not answer."""
        unanswered = None
        newest = await self._upkeep.claimed_through()
        unclaimed = await self._upkeep.unclaimed()
        for priority in Priority:
            overtaken = self._claimed_through.get(priority)
            if overtaken is not None:
                await self._resend(priority, overtaken, "overtaken")
            try:
                empty = await self._is_empty(priority, unclaimed.get(priority, 0))
            except BrokerUnavailable as error:
                unanswered = error
                self._empty.discard(priority)
                continue
            if empty:
                await self._resend(priority, None, "queue found empty")
        self._claimed_through = newest
        if unanswered is not None:
            raise unanswered

    async def _is_empty(self, priority: Priority, unclaimed: int) -> bool:
        depth = await self._broker.depth(work_route(priority))
        empty = (depth is None or not depth.ready) and not unclaimed
        twice = empty and priority in self._empty
        (self._empty.add if empty else self._empty.discard)(priority)
        return twice

    async def _resend(self, priority: Priority, queued_before: datetime | None, sign: str) -> None:
        sent = await self._upkeep.resend(priority, queued_before, MOST_ROWS, self._round_seconds)
        if sent:
            log.warning("sent again", queue=work_route(priority), tasks=sent, sign=sign)
