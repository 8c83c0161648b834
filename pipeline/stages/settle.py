"""Lets go of the outbox rows that the broker holds, and only of those."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pipeline.broker.topology import UnknownRoute, parse
from pipeline.flow import Stage
from pipeline.stages.publish import Published

if TYPE_CHECKING:
    from pipeline.ports import Outbox
    from storage.model import OutboxRow

log = structlog.get_logger()

UNSENT_SECONDS = 1.0
UNDELIVERABLE_SECONDS = 5.0


class Settle(Stage[Published, None]):
    """Deletes confirmed rows and marks their tasks PENDING; gives back the rest.

    Only a row that no queue takes, after its route was declared, counts an attempt; with `most_attempts`
    row and task are FAILED.
    """

    def __init__(self, outbox: Outbox, most_attempts: int = 5) -> None:
        self._outbox = outbox
        self._most_attempts = most_attempts

    async def __call__(self, published: Published) -> None:
        """Settle what was confirmed first: it must not wait for what went wrong."""
        if published.confirmed:
            await self._outbox.settle([(row.id, _hold_seconds(row)) for row in published.confirmed])
        if published.unsent:
            await self._outbox.release([row.id for row in published.unsent], UNSENT_SECONDS)
            log.warning("not taken by the broker, sent again later", rows=len(published.unsent))
        for withheld in published.withheld:
            await self._outbox.release([row.id for row in withheld.rows], withheld.seconds)
        if published.undeliverable:
            await self._count(published.undeliverable)

    async def _count(self, rows: list[OutboxRow]) -> None:
        routes = ", ".join(sorted({row.route for row in rows}))
        failed = await self._outbox.returned(
            [row.id for row in rows], f"no queue takes {routes}", self._most_attempts, UNDELIVERABLE_SECONDS
        )
        log.warning("undeliverable", routes=routes, rows=len(rows), failed=len(failed))


def _hold_seconds(row: OutboxRow) -> float:
    """Tell how long the row's queue holds a message back before a worker can see it."""
    try:
        return float(parse(row.route).hold_seconds)
    except UnknownRoute:  # of a newer version, and somebody has declared its queue
        return 0.0
