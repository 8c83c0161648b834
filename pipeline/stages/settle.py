"""Lets go of the outbox rows that the broker holds, and only of those."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from pipeline.broker.topology import UnknownRoute, parse
from pipeline.clock import MonotonicClock
from pipeline.flow import Stage, unless
from pipeline.stages.publish import Published
from storage.backoff import until_known
from storage.errors import StorageError

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.ports import Outbox
    from storage.model import OutboxRow

log = structlog.get_logger()

UNSENT_SECONDS = 1.0
UNDELIVERABLE_SECONDS = 5.0

LINGER_SECONDS = 0.05
"""How long a few confirmed rows wait for more. Most of their tasks are claimed by then, and need no mark any
more, which is half of the work; and no claim waits for the row that the mark has locked.
"""

MANY = 100
"""So many at once are a backlog: nobody will have claimed them soon."""


class Settle(Stage[Published, None]):
    """Deletes confirmed rows and marks their tasks PENDING; gives back the rest.

    A few rows are settled a moment later, together. Until then they are leased, and a process that dies only
    doubles their messages. Only a row that no queue takes, after its route was declared, counts an attempt;
    with `most_attempts` row and task are FAILED.
    """

    def __init__(
        self,
        outbox: Outbox,
        most_attempts: int = 5,
        linger_seconds: float = LINGER_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self._outbox = outbox
        self._most_attempts = most_attempts
        self._linger_seconds = linger_seconds
        self._clock = clock or MonotonicClock()
        self._lingering: list[OutboxRow] = []
        self._settling: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def __call__(self, published: Published) -> None:
        """Settle what was confirmed first: it must not wait for what went wrong."""
        if len(published.confirmed) >= MANY:
            await self._settle(published.confirmed)
        elif published.confirmed:
            self._settle_later(published.confirmed)
        if published.unsent:
            await self._outbox.release([row.id for row in published.unsent], UNSENT_SECONDS)
            log.warning("not taken by the broker, sent again later", rows=len(published.unsent))
        for withheld in published.withheld:
            await self._outbox.release([row.id for row in withheld.rows], withheld.seconds)
        if published.undeliverable:
            await self._count(published.undeliverable)

    async def drain(self, grace_seconds: float) -> None:
        """Settle at once what lingers, within the grace."""
        self._stopping.set()
        if self._settling is not None:
            await asyncio.wait({self._settling}, timeout=grace_seconds)
        if self._settling is not None:
            self._settling.cancel()

    def _settle_later(self, rows: list[OutboxRow]) -> None:
        self._lingering += rows
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle_lingering())

    async def _settle_lingering(self) -> None:
        try:
            await unless(self._stopping, self._clock.sleep(self._linger_seconds))
            while self._lingering:
                await until_known(
                    self._settle_what_lingers,
                    (StorageError,),
                    lambda error: log.warning(
                        "settling repeated", rows=len(self._lingering), error=str(error)
                    ),
                    sleep=self._clock.sleep,
                )
        except Exception:
            # A bug of ours: the rows are sent again when their leases have run out.
            log.exception("rows not settled", rows=len(self._lingering))
            self._lingering.clear()
        finally:
            self._settling = None

    async def _settle_what_lingers(self) -> None:
        rows = self._lingering[:]
        await self._settle(rows)
        del self._lingering[: len(rows)]

    async def _settle(self, rows: list[OutboxRow]) -> None:
        await self._outbox.settle([(row.id, _hold_seconds(row)) for row in rows])

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
