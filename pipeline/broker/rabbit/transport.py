"""A connection that can be ended without its peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aio_pika
from aiormq import TransportFactory
from aiormq.connection import TCPTransportFactory, TLSTransportFactory

if TYPE_CHECKING:
    import asyncio

    from yarl import URL


class _Remembering(TransportFactory):
    """Opens transports as aiormq does, and keeps hold of the last one."""

    def __init__(self, scheme: str) -> None:
        self._factory = TLSTransportFactory() if scheme == "amqps" else TCPTransportFactory()
        self.writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self.writer = await self._factory.create(url, **kwargs)
        return reader, self.writer


class AbortableConnection(aio_pika.Connection):
    """Closing flushes what is written first, and aiormq cannot be talked out of that by a cancellation.

    Towards a broker that stands still it would keep a process from ending for as long.
    """

    def __init__(self, url: URL, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        self._remembering = _Remembering(self.url.scheme)
        self.kwargs["transport_factory"] = self._remembering

    def abort(self) -> None:
        """Drop the transport and whatever it had still to send."""
        if self._remembering.writer is not None:
            self._remembering.writer.transport.abort()
