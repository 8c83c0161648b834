"""One connection to RabbitMQ, made again for as long as it is wanted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import aio_pika
import structlog
from aiormq.exceptions import AMQPError

from pipeline.broker import BrokerUnavailable
from pipeline.broker.rabbit.transport import AbortableConnection
from storage.backoff import backoff_seconds
from storage.cancellation import cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aio_pika.abc import AbstractConnection
    from aiormq.abc import AbstractChannel as Channel
    from yarl import URL

log = structlog.get_logger()

HEARTBEAT_SECONDS = 30
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
CANCEL_AGAIN_SECONDS = 0.2
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0
BLOCKED_POLL_SECONDS = 0.5
REMINDER_SECONDS = 60.0


def pauses_seconds() -> Iterator[float]:
    """Begin a series of waits for the broker, from a tenth of a second to five."""
    return backoff_seconds(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)


async def end(keeper: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: aiormq may swallow a cancellation that meets an awaited answer."""
    while not keeper.done():
        keeper.cancel()
        await asyncio.wait({keeper}, timeout=CANCEL_AGAIN_SECONDS)


@asynccontextmanager
async def calling(seconds: float) -> AsyncIterator[None]:
    """Bound a call to the broker in time; raises BrokerUnavailable for all that a dead connection throws.

    The bound is ours since aio-pika waits for a connection to be ready outside its own `timeout=`.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BrokerUnavailable(f"no answer within {seconds:g} s") from error
    except (AMQPError, OSError, RuntimeError) as error:
        raise BrokerUnavailable(_text(error)) from error
    except asyncio.CancelledError:
        if cancelled():
            raise
        raise BrokerUnavailable("the connection was closed") from None


def alive(channel: Channel) -> bool:
    """Whether frames may be written to a channel: on one that it has closed, the broker ends the connection.

    aiormq forgets a channel's number as soon as it reads of its end, which is turns before `is_closed`.
    """
    return not channel.is_closed and channel.connection.channels.get(channel.number) is channel


class Link:
    """Keeps one connection: made when first asked for, and again after each loss, for ever.

    aio-pika's own robust connection is not used: it waits a fixed time, declares again what may fail and
    then fails as a whole, and does not tell its user that it is away.
    """

    def __init__(self, url: URL, name: str) -> None:
        self._url = url if "heartbeat" in url.query else url.update_query(heartbeat=HEARTBEAT_SECONDS)
        self._name = name
        self._keeper: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._dropped = asyncio.Event()
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._trouble = "not connected"
        self._blocked = False
        self._closed = False
        self._shutting: set[asyncio.Task[None]] = set()

    @property
    def opened(self) -> bool:
        """Whether anybody has asked for the connection yet."""
        return self._keeper is not None

    def open(self) -> None:
        """Start connecting, unless that has been done; raises BrokerUnavailable once closed."""
        if self._closed:
            raise BrokerUnavailable("this broker is closed")
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name=f"keep connection {self._name}")

    async def connected(self) -> AbstractConnection:
        """Wait for the connection, however long it takes."""
        self.open()
        while self._connection is None:
            await self._up.wait()
        return self._connection

    async def usable(self) -> AbstractConnection:
        """Give the connection at once; raises BrokerUnavailable where there is none, or a blocked one.

        Only the very first attempt to connect is waited for.
        """
        self.open()
        await self._tried.wait()
        if self._connection is None:
            raise BrokerUnavailable(self._trouble)
        if await self.blocked(self._connection):
            raise BrokerUnavailable("the broker blocks publishers: a memory or disk alarm")
        return self._connection

    async def ready(self) -> None:
        """Wait until there is a connection and the broker reads from it."""
        while await self.blocked(await self.connected()):  # noqa: ASYNC110 - aiormq tells nobody when it ends
            await asyncio.sleep(BLOCKED_POLL_SECONDS)

    async def blocked(self, connection: AbstractConnection) -> bool:
        """Whether the broker has stopped reading from the connection (`connection.blocked`)."""
        blocked = False
        try:
            async with asyncio.timeout(0):
                if connection.transport is not None:
                    await connection.transport.ready()
        except TimeoutError:
            blocked = True
        if blocked != self._blocked:
            self._blocked = blocked
            log.warning(
                "broker blocks publishers" if blocked else "broker reads again", connection=self._name
            )
        return blocked

    def drop(self, connection: AbstractConnection, trouble: str) -> None:
        """Give a connection up that no longer answers, without waiting for its heartbeat to fail."""
        if connection is self._connection:
            self._trouble = trouble
            self._withdraw()
            self._dropped.set()

    async def close(self) -> None:
        """Close for good, within a few seconds whatever the broker does."""
        self._closed = True
        if self._keeper is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await end(self._keeper)
        if self._shutting:
            await asyncio.wait(self._shutting, timeout=2 * CLOSE_SECONDS)

    async def _keep(self) -> None:
        while True:
            connection = await self._connect()
            try:
                await self._hold(connection)
            finally:
                self._withdraw()
                self._shut(connection)
            log.warning("broker connection lost", connection=self._name, error=self._trouble)
            await asyncio.sleep(next(pauses_seconds()))

    def _withdraw(self) -> None:
        self._connection = None
        self._up.clear()

    async def _hold(self, connection: AbortableConnection) -> None:
        """Offer the connection until it is lost or dropped."""
        if connection.transport is None:
            return
        closing = connection.transport.connection.closing
        self._dropped.clear()
        dropped = asyncio.ensure_future(self._dropped.wait())
        self._connection = connection
        self._up.set()
        self._tried.set()
        log.info("broker connected", connection=self._name, server=self._server)
        try:
            await asyncio.wait({closing, dropped}, return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                self._trouble = "closed" if closing.cancelled() else _text(closing.exception())
        finally:
            dropped.cancel()
            closing.cancel()

    async def _connect(self) -> AbortableConnection:
        """Try until it works; tell of the first failure, of each new kind, and now and then."""
        loop = asyncio.get_running_loop()
        attempts, told, told_at, pauses = 0, "", 0.0, pauses_seconds()
        while True:
            try:
                async with calling(CONNECT_SECONDS):
                    return await aio_pika.connect(
                        self._url,
                        client_properties={"connection_name": self._name},
                        connection_class=AbortableConnection,
                    )
            except Exception as error:  # noqa: BLE001 - whatever keeps us away, a process that lives tries again
                self._trouble = str(error)
            self._tried.set()
            attempts += 1
            if self._trouble != told or loop.time() - told_at > REMINDER_SECONDS:
                told, told_at = self._trouble, loop.time()
                log.error("broker unreachable, trying on", server=self._server, error=told, attempts=attempts)
            await asyncio.sleep(next(pauses))

    @property
    def _server(self) -> str:
        return str(self._url.with_password(None).with_query(None))

    def _shut(self, connection: AbortableConnection) -> None:
        task = asyncio.create_task(_shut(connection))
        self._shutting.add(task)
        task.add_done_callback(self._shutting.discard)


async def _shut(connection: AbortableConnection) -> None:
    """Close a connection, and end it where the broker does not answer."""
    closing = asyncio.ensure_future(connection.close())
    await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    connection.abort()
    with suppress(BrokerUnavailable):
        async with calling(CLOSE_SECONDS):
            await closing


def _text(error: BaseException | None) -> str:
    """Say what happened; the texts of aiormq and of the broker name no password."""
    return f"{type(error).__name__}: {', '.join(str(part) for part in error.args)}" if error else "closed"
