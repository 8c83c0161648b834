"""A TCP proxy in front of one server, for one program: where the chaos run breaks the network."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Self

from tests.chaos.harness.connection import Connection
from tests.chaos.harness.network import Delay, Effect, Loss, Network
from tests.chaos.harness.swallowing import Swallowed, Wishes, swallow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from random import Random

    from tests.chaos.harness.frames import Conversation
    from tests.chaos.harness.network import Slow

HOST = "127.0.0.1"


class Proxy:
    """One listening port in front of one server; `upstream_host` may be the folder of PostgreSQL's socket.

    `conversation` makes what follows the protocol of one connection.
    Bytes pass as they come, and no more are read than the other side takes. Where the server refuses, the
    client's connection is reset.
    """

    port: int

    def __init__(
        self, upstream_host: str, upstream_port: int, conversation: Callable[[], Conversation]
    ) -> None:
        self._upstream_host = upstream_host
        self._upstream_port = upstream_port
        self._conversation = conversation
        self._network = Network()
        self._wishes = Wishes()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.close()

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1, the same one until `close`."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more, and reset every connection."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for connection in list(self._connections):
            await connection.over.wait()

    @property
    def connections(self) -> int:
        """How many there are, those that still look for the server included."""
        return sum(not connection.ended for connection in self._connections)

    def cut(self) -> int:
        """Reset every connection at once (RST), on both sides; how many there were."""
        return sum(connection.reset() for connection in list(self._connections))

    async def swallow_reply(self, seconds: float) -> Swallowed | None:
        """Keep back the next reply that says something was done, and reset its connection; None if none came.

        PostgreSQL: the CommandComplete of a statement that changed rows, or of a COMMIT after such, once
        ReadyForQuery says that it is committed. AMQP: a confirm. Several calls at a time take one reply each.
        """
        return await swallow(self._wishes, seconds)

    @asynccontextmanager
    async def delayed(self, low_seconds: float, high_seconds: float, rng: Random) -> AsyncIterator[Effect]:
        """Let each chunk take so long; their order stays."""
        with self._slowed(Delay(low_seconds, high_seconds, rng)) as effect:
            yield effect

    @asynccontextmanager
    async def lossy(self, share: float, stall_seconds: float, rng: Random) -> AsyncIterator[Effect]:
        """Let a share of the chunks come late, as after a retransmission, and all that follow behind them."""
        with self._slowed(Loss(share, stall_seconds, rng)) as effect:
            yield effect

    @asynccontextmanager
    async def black_hole(self) -> AsyncIterator[Effect]:
        """Let nothing pass, neither bytes nor the end of a connection, and reset all connections at the end.

        New ones are accepted and get no answer.
        """
        effect = Effect()
        for connection in self._connections:
            effect.touched(connection.number)
        self._network.holes.append(effect)
        try:
            yield effect
        finally:
            self._network.holes.remove(effect)
            self.cut()

    @contextmanager
    def _slowed(self, fault: Slow) -> Iterator[Effect]:
        self._network.slow.append(fault)
        try:
            yield fault.effect
        finally:
            self._network.slow.remove(fault)

    def _accept(self) -> asyncio.Protocol:
        connection = Connection(
            self._network, self._conversation(), self._wishes, self._dial, self._connections.discard
        )
        self._connections.add(connection)
        return connection.client

    async def _dial(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        loop = asyncio.get_running_loop()
        if self._upstream_host.startswith("/"):
            path = f"{self._upstream_host}/.s.PGSQL.{self._upstream_port}"
            await loop.create_unix_connection(protocol, path)
        else:
            await loop.create_connection(protocol, self._upstream_host, self._upstream_port)
