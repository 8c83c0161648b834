"""Load on a gateway: a closed loop sends as fast as it is answered, an open loop as its schedule says.

An open loop sends when it is time to, whether earlier requests are answered or not. Where no connection is
free a request waits for one, and its latency still counts from when it was due: who measures from when it
was sent leaves out what a stall of the server does to its clients (coordinated omission).
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from pipeline.bench.http import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.bench.http import Target

RECONNECT_SECONDS = 0.1
SMALLEST_WAIT_SECONDS = 1e-6  # what floats leave of nothing


class Unreachable(Exception):
    """Nobody answers at the target."""


class Exchange(NamedTuple):
    """A request and its answer; times are those of the loop's clock, in seconds.

    `status` is None where the connection was lost before an answer: it may have been carried out.
    """

    due_at: float
    sent_at: float
    ended_at: float
    status: int | None


class Load(ABC):
    """Connections, as an asynchronous context manager.

    Entering opens all of them, or raises Unreachable; leaving gives up what is unanswered. `record` hears of
    each request once, with the body of the answer; `answers` counts them. A lost connection is replaced while
    there is something to send.
    """

    def __init__(
        self,
        target: Target,
        connections: int,
        record: Callable[[Exchange, bytes], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._target = target
        self._most = connections
        self._record = record
        self._clock = clock
        self._tls = target.trust()
        self._open = set[Connection]()
        self._connecting = set[asyncio.Task[None]]()
        self._busy = 0
        self.answers = 0
        self._quiet = asyncio.Event()
        self._gone = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            for _ in range(self._most):
                self._open.add(await self._target.connect(self, self._tls))
        except OSError as error:
            await self.__aexit__()
            reason = str(error) or type(error).__name__
            raise Unreachable(f"cannot reach {self._target!r}: {reason}") from error
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.halt()
        for connecting in self._connecting:
            connecting.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in self._open:
            connection.close()
        while self._open:
            self._gone.clear()
            await self._gone.wait()

    async def quiet(self, patience_seconds: float) -> bool:
        """Return when nothing is left to send and all is answered, or the time is up; whether it is so."""
        self._look()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                await self._quiet.wait()
        return self._quiet.is_set()

    @abstractmethod
    def halt(self) -> None:
        """Send nothing more."""

    @abstractmethod
    def _unsent(self) -> bool:
        """Tell whether something is left to send, now or later."""

    @abstractmethod
    def _lacking(self) -> int:
        """Tell how many connections, up to how many are allowed, would have something to send now."""

    @abstractmethod
    def _ready(self, connection: Connection) -> None:
        """Give a free connection something to send."""

    def _send(self, connection: Connection, request: bytes, due_at: float | None = None) -> None:
        now = self._clock()
        self._busy += 1
        connection.send(request, now if due_at is None else due_at, now)

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        """Record, and go on."""
        self._busy -= 1
        self.answers += 1
        self._record(Exchange(connection.due_at, connection.sent_at, self._clock(), status), body)
        if connection.reusable:
            self._ready(connection)
        self._look()

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        """Record what went with the connection, and replace it if it is wanted."""
        self._open.discard(connection)
        if not self._open:
            self._gone.set()
        if unanswered:
            self._busy -= 1
            self._record(Exchange(connection.due_at, connection.sent_at, self._clock(), None), b"")
        self._connect()
        self._look()

    def _look(self) -> None:
        if not self._busy and not self._unsent():
            self._quiet.set()

    def _connect(self) -> None:
        room = self._most - len(self._open) - len(self._connecting)
        for _ in range(min(room, self._lacking() - len(self._connecting))):
            connecting = asyncio.get_running_loop().create_task(self._connect_one())
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    async def _connect_one(self) -> None:
        while self._unsent():
            try:
                connection = await self._target.connect(self, self._tls)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            if connection.reusable:
                self._open.add(connection)
                self._ready(connection)
                self._look()
                return


class ClosedLoop(Load):
    """Each connection sends its next request when the last one is answered."""

    _requests: Iterator[bytes] | None = None

    def start(self, requests: Iterator[bytes]) -> None:
        """Send these, until there are no more or `halt` is called."""
        self._requests = requests
        self._quiet.clear()
        for connection in list(self._open):
            self._ready(connection)

    def halt(self) -> None:
        """Send nothing more."""
        self._requests = None

    def _unsent(self) -> bool:
        return self._requests is not None

    def _lacking(self) -> int:
        return self._most if self._requests is not None else 0

    def _ready(self, connection: Connection) -> None:
        if self._requests is None:
            return
        request = next(self._requests, None)
        if request is None:
            self._requests = None
        else:
            self._send(connection, request)


class OpenLoop(Load):
    """Requests at a steady rate.

    Timers are as coarse as the event loop's, a millisecond: what is due within it goes out together, never
    early. `late_seconds` tells of each request how late it was noticed that it is due, which is this
    process's fault alone; then it may have waited for a connection.
    """

    _request = b""
    _rate_per_second = 1.0
    _count = 0
    _begun = 0
    _began_at = 0.0

    def __init__(
        self,
        target: Target,
        connections: int,
        record: Callable[[Exchange, bytes], None],
        clock: Callable[[], float] = time.perf_counter,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        super().__init__(target, connections, record, clock)
        self._later = later or asyncio.get_running_loop().call_later
        self._free: list[Connection] = []
        self._waiting = deque[float]()
        self.late_seconds: list[float] = []

    @property
    def unsent(self) -> list[float]:
        """When those requests were due that wait for a connection."""
        return list(self._waiting)

    def start(self, request: bytes, rate_per_second: float, count: int) -> float:
        """Send a request `count` times at this rate; the moment at which the first is due."""
        self._request, self._rate_per_second, self._count = request, rate_per_second, count
        self._free = list(self._open)
        self._quiet.clear()
        self._began_at = self._clock()
        self._tick()
        return self._began_at

    def halt(self) -> None:
        """Send nothing more, not even what is due."""
        self._count = 0

    def _tick(self) -> None:
        while self._begun < self._count:
            due_at = self._began_at + self._begun / self._rate_per_second
            wait_seconds = due_at - self._clock()
            if wait_seconds > SMALLEST_WAIT_SECONDS:
                self._later(math.ceil(round(wait_seconds * 1000, 3)) / 1000, self._tick)
                break
            self._begun += 1
            self.late_seconds.append(-wait_seconds)
            # The one used last: those that a lower rate leaves over may be closed by the server.
            if self._free:
                self._send(self._free.pop(), self._request, due_at)
            else:
                self._waiting.append(due_at)
        self._connect()

    def _unsent(self) -> bool:
        return self._begun < self._count or (self._count > 0 and bool(self._waiting))

    def _lacking(self) -> int:
        return len(self._waiting) if self._count else 0

    def _ready(self, connection: Connection) -> None:
        if self._waiting and self._count:
            self._send(connection, self._request, self._waiting.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        """Use it no more."""
        if connection in self._free:
            self._free.remove(connection)
        super().lost(connection, unanswered=unanswered)
