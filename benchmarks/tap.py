"""A tap between a service and its servers, which counts what passes: round trips of SQL, frames of AMQP."""

from __future__ import annotations

import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
from yarl import URL

from tests.chaos.harness import amqp_frames, postgres_frames
from tests.chaos.harness.frames import Frames
from tests.chaos.harness.proxy import HOST, Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.servers import Database

AMQP_GREETING_BYTES = 8
AMQP_KINDS = bytes([1, 2, 3, 8])  # method, header, body, heartbeat


class Tap:
    """What has passed since the last `restart`, over all connections.

    A round trip ends in PostgreSQL's ReadyForQuery: a statement, or its preparation. Frames of AMQP are
    counted both ways.
    """

    sql_round_trips = 0
    amqp_frames = 0

    def restart(self) -> None:
        """Count from here on."""
        self.sql_round_trips = self.amqp_frames = 0

    @asynccontextmanager
    async def between(self, database: Database, amqp_url: str) -> AsyncIterator[tuple[Database, str]]:
        """Stand in front of both servers; where the service finds them."""
        broker = URL(amqp_url)
        async with (
            Proxy(database.host, database.port, lambda: Sql(self)) as postgres,
            Proxy(broker.host or "", broker.port or 0, lambda: Amqp(self)) as rabbitmq,
        ):
            tapped = msgspec.structs.replace(database, host=HOST, port=postgres.port)
            yield tapped, str(broker.with_host(HOST).with_port(rabbitmq.port))


class Sql:
    """A connection with PostgreSQL, seen from its answers; one that asks for TLS is not understood."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._answers = _frames(
            postgres_frames.HEADER, postgres_frames.BEYOND, bytes([postgres_frames.READY])
        )

    def sent(self, data: bytes) -> None:
        """Leave aside what the client says."""

    def received(self, data: bytes) -> tuple[()]:
        """Count each end of an answer."""
        self._tap.sql_round_trips += len(self._answers.feed(data))
        return ()


class Amqp:
    """A connection with RabbitMQ: frames from both sides, behind a greeting of the client's."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._greeting_bytes = AMQP_GREETING_BYTES
        self._asked, self._answered = (
            _frames(amqp_frames.HEADER, amqp_frames.BEYOND, AMQP_KINDS) for _ in range(2)
        )

    def sent(self, data: bytes) -> None:
        """Count frames of the client."""
        greeting = data[: self._greeting_bytes]
        self._greeting_bytes -= len(greeting)
        self._tap.amqp_frames += len(self._asked.feed(data[len(greeting) :]))

    def received(self, data: bytes) -> tuple[()]:
        """Count frames of the broker."""
        self._tap.amqp_frames += len(self._answered.feed(data))
        return ()


def _frames(header: str, beyond: int, kinds: bytes) -> Frames:
    """Look at the heads of frames only."""
    return Frames(header, beyond, kinds, struct.calcsize(header))
