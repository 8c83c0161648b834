"""Connections to PostgreSQL, with every trap of the driver closed off from callers.

psqlpy has no acquire time-out, cannot cancel a running statement, hands back connections in any state and
tells errors apart by text only. So: each call owns its connection, runs in autocommit, has a deadline that
the server's own `statement_timeout` undercuts, and a connection whose call did not end cleanly is dropped.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import psqlpy
from psqlpy.exceptions import DataError, Error

from storage.errors import (
    Closed,
    LockTimeout,
    OutcomeUnknown,
    Refused,
    SchemaMismatch,
    StorageError,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

Row = tuple[Any, ...]

LETTING_GO_SECONDS = 0.05


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where PostgreSQL is; `host` may be the folder of a Unix socket."""

    host: str
    port: int
    user: str
    password: str
    database: str

    def __repr__(self) -> str:
        """Leave the password out of logs and tracebacks."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"


def connection_options(address: Address, application_name: str) -> dict[str, Any]:
    """Say where to connect, and notice a peer that is gone within seconds instead of minutes."""
    return {
        "host": address.host,
        "port": address.port,
        "username": address.user,
        "password": address.password,
        "db_name": address.database,
        "application_name": application_name,
        "connect_timeout_sec": 5,
        "tcp_user_timeout_sec": 15,
        "keepalives": True,
        "keepalives_idle_sec": 15,
        "keepalives_interval_sec": 5,
        "keepalives_retries": 3,
    }


class Database:
    """Up to `size` connections of one process; lost ones are replaced, waiting is bounded."""

    def __init__(
        self,
        address: Address,
        *,
        size: int = 4,
        application_name: str = "baton",
        timeout_seconds: float = 10.0,
        synchronous: bool = True,
    ) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._application_name = application_name
        self._synchronous = synchronous
        self._idle: list[psqlpy.Connection] = []
        self._places = asyncio.Semaphore(size)
        self._running: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def fetch(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement in autocommit and return its rows, all within `timeout_seconds`.

        A connection found dead is replaced once and the statement repeated: every statement of the
        ledger bears repetition. Raises the errors of `storage.errors`.
        """
        deadline = self._deadline()
        try:
            return await self._fetch(sql, parameters, deadline)
        except OutcomeUnknown as lost:
            self._drop_idle()
            try:
                return await self._fetch(sql, parameters, deadline)
            except (Unavailable, LockTimeout) as error:
                # True of the second try only: the first may have been carried out.
                raise lost from error

    async def _fetch(self, sql: str, parameters: Sequence[object], deadline: float) -> list[Row]:
        async def run(connection: psqlpy.Connection) -> list[Row]:
            # prepared=True with a parameter list is the one path that psqlpy serves from its statement cache.
            result = await connection.execute(sql, list(parameters))
            rows: list[Row] = result.result(as_tuple=True)
            return rows

        return await self._call(run, deadline)

    async def tell(self, sql: str) -> None:
        """Run a statement without parameters and without an answer, once.

        psqlpy compiles a regular expression for each call that might have parameters: a fifth of a short one.
        """
        await self._call(lambda connection: connection.execute_batch(sql), self._deadline())

    async def script(self, sql: str) -> None:
        """Run several statements, as migrations do, in the order given and in one transaction."""

        async def run(connection: psqlpy.Connection) -> None:
            try:
                await connection.execute_batch(f"BEGIN;\n{sql}\n;COMMIT;")
            except Error:
                # The transaction stays open and aborted on this connection; one that is lost has none.
                with suppress(Error):
                    await connection.execute_batch("ROLLBACK")
                raise

        await self._call(run, self._deadline())

    async def close(self) -> None:
        """Wait for what runs, then disconnect.

        An interpreter that exits with a call in flight dies in Rust with SIGABRT, and so does one that exits
        while a thread of the driver still lets go of what it has answered or listened to.
        """
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=self.timeout_seconds)
        self._drop_idle()
        # Nothing tells when those threads are through: without this, 1 of 5 exits failed on a busy machine.
        await asyncio.sleep(LETTING_GO_SECONDS)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.timeout_seconds

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _call(self, call: Callable[[psqlpy.Connection], Awaitable[T]], deadline: float) -> T:
        """Make a call on a connection, which is idle again afterwards only if the call was answered."""
        if self._places.locked():
            await self._wait_for_place(deadline)
        else:
            await self._places.acquire()
        connection: psqlpy.Connection | None = None
        try:
            connection = await self._take(deadline)
            answer = await self._finish(call(connection), deadline)
        except BaseException as error:
            failure = classify(error)
            if connection is not None and isinstance(failure, (Refused, LockTimeout, SchemaMismatch)):
                self._give_back(connection)
            elif connection is not None:
                connection.close()
            if failure is error:
                raise
            raise failure from error
        else:
            self._give_back(connection)
        finally:
            self._places.release()
        return answer

    async def _wait_for_place(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError as error:
            raise Unavailable(f"no database connection free within {self.timeout_seconds:g} s") from error

    async def _take(self, deadline: float) -> psqlpy.Connection:
        if self._closed:  # asked with the place in hand: the end may have come while the call waited for it
            raise Closed("the database connections of this process are closed")
        return self._idle.pop() if self._idle else await self._connect(deadline)

    def _give_back(self, connection: psqlpy.Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    async def _connect(self, deadline: float) -> psqlpy.Connection:
        # enable_seqscan off: a plan cached while the tables were small must not read them whole later.
        # enable_bitmapscan off: a list must not gather and sort all its tasks to show the first page of them.
        # force_generic_plan: for a short array a plan of its own looks cheaper, and was made for each call.
        session = (
            f"-c statement_timeout={self.timeout_seconds * 900:.0f} -c lock_timeout=3000 "
            "-c idle_in_transaction_session_timeout=10000 -c jit=off "
            "-c enable_seqscan=off -c enable_bitmapscan=off -c plan_cache_mode=force_generic_plan "
            f"-c synchronous_commit={'on' if self._synchronous else 'off'}"
        )
        options = connection_options(self.address, self._application_name)
        connecting = asyncio.ensure_future(psqlpy.connect(**options, options=session))
        try:
            connection: psqlpy.Connection = await self._finish(connecting, deadline)
        except BaseException as error:
            connecting.add_done_callback(_close_late)
            if isinstance(error, OutcomeUnknown):
                raise Unavailable(f"cannot connect to PostgreSQL: {error}") from error
            raise
        return connection

    async def _finish(self, call: Awaitable[T], deadline: float) -> T:
        """Await a call of the driver within the deadline; a call that is left goes on, and is known."""
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(call)
        self._running.add(running)
        # By hand: asyncio.wait, and its task for a single call, take a tenth of the time of a short one.
        over = loop.create_future()
        late = loop.call_at(deadline, _end, over)
        running.add_done_callback(self._forget)
        running.add_done_callback(lambda _: _end(over))
        try:
            await over
        finally:
            late.cancel()
        if not running.done():
            raise OutcomeUnknown(f"no answer from the database within {self.timeout_seconds:g} s")
        if running.cancelled():
            # psqlpy lets a caller down this way too; nobody here has told this call to stop.
            raise OutcomeUnknown("the driver gave the call up")
        return running.result()

    def _forget(self, running: asyncio.Future[Any]) -> None:
        self._running.discard(running)
        if not running.cancelled():
            running.exception()


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _close_late(connecting: asyncio.Future[psqlpy.Connection]) -> None:
    """Close a connection that nobody waits for any more, and not only when it is collected."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


# The first three are looked for at the beginning, where PostgreSQL quotes nothing that a caller wrote.
_LOCKED = re.compile(r"canceling statement due to lock timeout|could not obtain lock")
_ROLLED_BACK = re.compile(
    r"canceling statement|deadlock detected|could not serialize|could not extend|could not .* No space left"
    r"|out of (shared )?memory|cannot execute .* in a read-only transaction|cached plan must not change"
)
_SCHEMA = re.compile(r"(relation|column|function) .* does not exist")
_REFUSED = re.compile(
    r"invalid byte sequence|unsupported Unicode escape|invalid input syntax|value too long|out of range"
    r"|violates|too (long|large|big)|incorrect binary data|cannot be converted|not in select list|exceeds"
    r"|invalid memory alloc request|index row",
)


def classify(error: BaseException) -> BaseException:
    """Turn what psqlpy raises, text only, into what a caller may do next.

    The texts are PostgreSQL's English messages: `lc_messages` must be C or English.
    An unknown failure after the statement was sent counts as OutcomeUnknown, which is repeated.
    """
    if isinstance(error, (StorageError, asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
        return error
    text = str(error).removeprefix("Cannot execute query, error - ")
    if isinstance(error, (UnicodeEncodeError, OverflowError, TypeError, DataError)):
        return Refused(f"{type(error).__name__}: {text}")
    if type(error).__name__ == "PanicException":
        return Refused(f"the driver gave up on the data: {text}")
    return _from_driver(text) if isinstance(error, Error) else error


def _from_driver(text: str) -> StorageError:
    if "Error occurred while creating a new object" in text:
        return Unavailable(f"cannot connect to PostgreSQL: {text.rpartition('a new object: ')[2]}")
    if "db error: ERROR" in text:
        return _answered(text.partition("db error: ERROR: ")[2])
    return OutcomeUnknown(f"connection to PostgreSQL lost: {text}")


def _answered(text: str) -> StorageError:
    message, _, _ = text.partition("\n")  # DETAIL may quote the whole row
    if _LOCKED.match(message):
        return LockTimeout(text)
    if _ROLLED_BACK.match(message):
        return Unavailable(text)
    if _SCHEMA.match(message):
        return SchemaMismatch(f"{text}; `baton migrate` brings the schema up to date")
    if _REFUSED.search(message):
        return Refused(text)
    return StorageError(text)
