"""The ledger of one process: its connections to PostgreSQL and the hands that share them."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Self

from storage.database import Database
from storage.dead_letters import PostgresDeadLetters
from storage.errors import StorageError
from storage.migrate import check
from storage.outbox import PostgresOutbox
from storage.runs import PostgresRuns
from storage.signals import PostgresSignals
from storage.submissions import PostgresSubmissions
from storage.tasks import PostgresTasks
from storage.upkeep import PostgresUpkeep
from storage.workers import PostgresWorkers

if TYPE_CHECKING:
    from storage.database import Address

_LANGUAGE = "SELECT current_setting('lc_messages')"
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


class PostgresLedger:
    """`pipeline.ports.Ledger` on PostgreSQL.

    Work shares `pool_size` connections. Heartbeats have their own, so that no backlog of writes makes a
    worker look dead, and so have wake-ups, which must not wait for the disk.
    """

    def __init__(self, address: Address, *, pool_size: int = 4, timeout_seconds: float = 10.0) -> None:
        self._database_name = address.database
        self._understood = False
        self._work = Database(
            address, size=pool_size, application_name="baton", timeout_seconds=timeout_seconds
        )
        self._liveness = Database(
            address, size=2, application_name="baton-heartbeat", timeout_seconds=timeout_seconds
        )
        self._wakeups = Database(
            address,
            size=1,
            application_name="baton-notify",
            timeout_seconds=timeout_seconds,
            synchronous=False,
        )
        self.signals = PostgresSignals(address, self._wakeups)
        self.submissions = PostgresSubmissions(self._work, self.signals)
        self.tasks = PostgresTasks(self._work, self.signals)
        self.outbox = PostgresOutbox(self._work, self.signals)
        self.runs = PostgresRuns(self._work, self.signals)
        self.workers = PostgresWorkers(self._liveness)
        self.upkeep = PostgresUpkeep(self._work, self.signals)
        self.dead_letters = PostgresDeadLetters(self._work, self.signals)

    async def __aenter__(self) -> Self:
        """Open nothing yet: connections are made when they are first needed."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Let what runs finish, then disconnect."""
        await self.signals.close()
        for database in (self._work, self._liveness, self._wakeups):
            await database.close()

    async def ready(self) -> None:
        """Return when the database answers, in English, and its schema fits.

        Once it did, newer migrations pass: a rolling upgrade must not take every old gateway out of service.
        Raises Unavailable, SchemaMismatch, or StorageError for messages in another language.
        """
        await check(self._work, beside_newer=self._understood)
        if not self._understood:
            [(language,)] = await self._work.fetch(_LANGUAGE)
            if not re.match(r"C\b|POSIX|en|$", language, re.IGNORECASE):
                raise StorageError(
                    f"PostgreSQL tells errors by lc_messages={language!r}, and the driver hands"
                    " on nothing but their text; allowed: C or English; as a superuser run"
                    f" ALTER DATABASE \"{self._database_name}\" SET lc_messages TO 'C'"
                )
            self._understood = True

    async def clock_offset_seconds(self) -> float:
        """Measure how far the database's clock is ahead of ours, by half of the round trip at worst."""
        before = time.time()
        [(database_time,)] = await self._work.fetch(_NOW)
        offset_seconds: float = database_time - (before + time.time()) / 2
        return offset_seconds
