"""Wake-ups by LISTEN and NOTIFY: only ever a hint, polling is the truth.

A NOTIFY inside a writing transaction would take a lock that all commits share, so it is sent after the
commit, on a connection of its own that does not wait for the disk, at most once per INTERVAL and channel.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psqlpy
import structlog

from storage.cancellation import cancelled
from storage.channels import DONE, OUTBOX
from storage.database import connection_options
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage.database import Address, Database

log = structlog.get_logger()

INTERVAL_SECONDS = 0.005
RECONNECT_SECONDS = 1.0

_NOTIFY = {channel: f"NOTIFY {channel}" for channel in (OUTBOX, DONE)}


class Wakeup:
    """`pipeline.ports.Subscriber`: an event that is forgotten as soon as it has been waited for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake whoever waits, now or next."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return when woken or after `seconds`, whichever is first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()


class PostgresSignals:
    """`pipeline.ports.Signals` on PostgreSQL."""

    def __init__(self, address: Address, database: Database) -> None:
        self._address = address
        self._database = database
        self._senders: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    def notify(self, channel: str) -> None:
        """Send at once, or, while a send is under way, once more after it."""
        if channel in self._senders:
            self._again.add(channel)
        else:
            self._senders[channel] = asyncio.create_task(self._send(channel))

    async def _send(self, channel: str) -> None:
        try:
            while True:
                self._again.discard(channel)
                with contextlib.suppress(StorageError):
                    await self._database.tell(_NOTIFY[channel])
                await asyncio.sleep(INTERVAL_SECONDS)
                if channel not in self._again:
                    return
        finally:
            del self._senders[channel]

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Wakeup]:
        """Listen for as long as the context is open; a lost connection is replaced, and wakes once."""
        wakeup = Wakeup()
        listening = asyncio.create_task(self._listen(channel, wakeup))
        try:
            yield wakeup
        finally:
            listening.cancel()
            await asyncio.wait({listening})

    async def _listen(self, channel: str, wakeup: Wakeup) -> None:
        while True:
            try:
                await self._listen_once(channel, wakeup)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:
                # The driver panics as a BaseException and throws CancelledError at whom it lets down.
                if cancelled():
                    raise
                log.debug("listener lost", channel=channel, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_once(self, channel: str, wakeup: Wakeup) -> None:
        """Listen until the connection dies: the iterator form raises then, the callback form goes silent."""
        pool = psqlpy.ConnectionPool(
            **connection_options(self._address, "baton-listener"), max_db_pool_size=2
        )
        listener = pool.listener()
        try:
            await listener.startup()
            # Told by add_callback, the driver would listen only once it is asked for the first notification.
            await listener.connection.execute_batch(f"LISTEN {channel}")
            wakeup.set()  # whatever was notified while nobody listened
            async for _ in listener:
                wakeup.set()
        finally:
            await listener.shutdown()
            pool.close()

    async def close(self) -> None:
        """Let the last wake-ups out."""
        if self._senders:
            await asyncio.wait(self._senders.values(), timeout=1.0)
