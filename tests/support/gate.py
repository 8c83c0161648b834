"""Holds a statement up in the middle: between its look at all its rows and its leap at one of them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psqlpy

from storage.database import connection_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from storage.database import Database

# Whoever updates the gated task waits for a lock that is held until the gate opens, however long.
_SETUP = """
CREATE TABLE gated (task_id uuid);
CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
    IF EXISTS (SELECT FROM gated WHERE task_id = NEW.id) THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER gate BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION gate()
"""

_WAITING = """
SELECT count(*)::int FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND datname = current_database()
"""


class Gate:
    """The keeper of the lock needs a connection that nobody else uses."""

    def __init__(self, watch: Database, keeper: psqlpy.Connection) -> None:
        self._watch = watch
        self._keeper = keeper

    @classmethod
    @asynccontextmanager
    async def built(cls, watch: Database) -> AsyncIterator[Gate]:
        await watch.script(_SETUP)
        keeper = await psqlpy.connect(**connection_options(watch.address, "gate"))
        yield cls(watch, keeper)
        keeper.close()

    @asynccontextmanager
    async def closed(self, task_id: UUID) -> AsyncIterator[None]:
        """Let nobody who updates this task go on until the end of the context."""
        await self._keeper.execute("SELECT pg_advisory_lock(1)::text")
        await self._watch.fetch("INSERT INTO gated VALUES ($1) RETURNING 1", [task_id])
        try:
            yield
        finally:
            await self._watch.fetch("DELETE FROM gated RETURNING 1")
            await self._keeper.execute("SELECT pg_advisory_unlock(1)")

    async def waiting(self) -> int:
        """How many statements wait, for the gate or for a row that one at the gate has locked."""
        [(count,)] = await self._watch.fetch(_WAITING)
        return int(count)
