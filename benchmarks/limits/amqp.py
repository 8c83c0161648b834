"""RabbitMQ at its fastest: frames that were encoded before, over one socket, into a quorum queue of ours."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
import pamqp.frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue
from pamqp.header import ContentHeader, ProtocolHeader

from benchmarks.costs import Cost, Meter
from benchmarks.observer import NotAsPromised
from gateway.ids import Ids
from pipeline.broker.topology import arguments, prerequisites, work_route
from pipeline.references import encode
from pipeline.stages.publish import MOST_REFERENCES
from storage.model import Priority, Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pamqp.base import Frame

    from benchmarks.scene import Site

Reply = TypeVar("Reply", bound="Frame")

MESSAGES = 50_000
CHUNK, WINDOW = 100, 1000
"""How many are written at once, and how many may be unconfirmed, or delivered and not acknowledged."""

PERSISTENT = 2
QUEUE = work_route(Priority.MEDIUM)

_HEAD = struct.Struct(">BHI")
_BEYOND = _HEAD.size + 1
_METHOD, _BODY = 1, 3
_ACK = struct.pack(">HH", 60, 80)
_ACKED = struct.Struct(">QB")


class Speed(msgspec.Struct, frozen=True):
    """Messages a second, and what one costs."""

    per_second: float
    cost: Cost


class Carried(msgspec.Struct, frozen=True):
    """Messages of so many references: published and confirmed, then delivered and acknowledged."""

    references: int
    publish: Speed
    consume: Speed


class Amqp(msgspec.Struct, frozen=True):
    """With one reference to a message, and with as many as a relay packs."""

    single: Carried
    packed: Carried


class RawChannel:
    """A channel of a connection of its own, over a socket that blocks."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._frames = self._read()
        self._socket.sendall(ProtocolHeader().marshal())
        self._expect(Connection.Start)
        login = f"\0{unquote(parts.username or '')}\0{unquote(parts.password or '')}"
        tune = self.call(Connection.StartOk(mechanism="PLAIN", response=login), Connection.Tune, channel=0)
        self.send(Connection.TuneOk(tune.channel_max, tune.frame_max, 0), channel=0)
        vhost = unquote(parts.path.removeprefix("/"))
        self.call(Connection.Open(virtual_host=vhost), Connection.OpenOk, channel=0)
        self.call(Channel.Open(), Channel.OpenOk)

    def close(self) -> None:
        """Leave without a word; what was not acknowledged goes back."""
        self._socket.close()

    def send(self, frame: Frame, channel: int = 1) -> None:
        """Write a method that has no answer."""
        self._socket.sendall(pamqp.frame.marshal(frame, channel))

    def call(self, frame: Frame, reply: type[Reply], channel: int = 1) -> Reply:
        """Write a method and wait for its answer."""
        self.send(frame, channel)
        return self._expect(reply)

    def publish(self, message: bytes, messages: int) -> None:
        """Write the frames of a message so many times, and return when all are confirmed."""
        self.call(Confirm.Select(), Confirm.SelectOk)
        confirms, sent = Confirms(), 0
        while confirms.count < messages:
            while sent < messages and sent - confirms.count < WINDOW:
                size = min(CHUNK, messages - sent)
                self._socket.sendall(message * size)
                sent += size
            kind, content = next(self._frames)
            if kind != _METHOD or content[:4] != _ACK:
                raise NotAsPromised(f"instead of a confirm came {content[:60]!r}")
            tag, multiple = _ACKED.unpack_from(content, 4)
            confirms.add(tag, multiple=bool(multiple))

    def consume(self, messages: int) -> None:
        """Take so many messages off the queue, and return when the broker has read the last ack."""
        self.call(Basic.Qos(prefetch_count=WINDOW), Basic.QosOk)
        self.call(Basic.Consume(queue=QUEUE), Basic.ConsumeOk)
        delivered = 0
        for kind, _ in self._frames:
            delivered += kind == _BODY
            if kind == _BODY and (delivered % CHUNK == 0 or delivered == messages):
                self.send(Basic.Ack(delivered, multiple=True))
            if delivered == messages:
                break
        self.call(Basic.Qos(prefetch_count=WINDOW), Basic.QosOk)

    def _expect(self, reply: type[Reply]) -> Reply:
        kind, content = next(self._frames)
        _, _, frame = pamqp.frame.unmarshal(_HEAD.pack(kind, 1, len(content)) + content + b"\xce")
        if not isinstance(frame, reply):
            raise NotAsPromised(f"instead of {reply.name} came {frame!r}")
        return frame

    def _read(self) -> Iterator[tuple[int, bytes]]:
        """Split what comes into the kinds and contents of frames."""
        rest = b""
        while data := self._socket.recv(1 << 18):
            rest += data
            start = 0
            while len(rest) - start >= _BEYOND:
                kind, _, size = _HEAD.unpack_from(rest, start)
                if len(rest) - start < size + _BEYOND:
                    break
                yield kind, rest[start + _HEAD.size : start + _HEAD.size + size]
                start += size + _BEYOND
            rest = rest[start:]
        raise NotAsPromised("the broker closed the connection")


class Confirms:
    """Counts what is confirmed: one by one in any order, or all up to a tag."""

    def __init__(self) -> None:
        self._through = 0
        self._beyond: set[int] = set()

    @property
    def count(self) -> int:
        """How many are confirmed."""
        return self._through + len(self._beyond)

    def add(self, tag: int, *, multiple: bool) -> None:
        """Take note of a confirm."""
        if multiple:
            self._through = tag
            self._beyond = {each for each in self._beyond if each > tag}
        else:
            self._beyond.add(tag)
        while self._through + 1 in self._beyond:
            self._through += 1
            self._beyond.remove(self._through)


async def measure(site: Site, tasks: int) -> Amqp:
    """Fill and empty a queue twice."""
    messages = min(tasks, MESSAGES)
    return Amqp(
        single=await _carried(site, messages, references=1),
        packed=await _carried(site, messages // 5, references=MOST_REFERENCES),
    )


async def _carried(site: Site, messages: int, references: int) -> Carried:
    ids = Ids()
    message = _message(encode(Reference(ids.new(), 1) for _ in range(references)))
    async with site.servers.rabbitmq.vhost() as vhost:
        with closing(RawChannel(vhost.url)) as channel:
            _declare(channel)
            publish = await _timed(site, messages, partial(channel.publish, message, messages))
        with closing(RawChannel(vhost.url)) as channel:
            consume = await _timed(site, messages, partial(channel.consume, messages))
        depths = await vhost.queue_depths()
        if any(depth.ready or depth.unacked for depth in depths.values()):
            raise NotAsPromised(f"messages are left: {depths}")
        return Carried(references=references, publish=publish, consume=consume)


async def _timed(site: Site, messages: int, work: Callable[[], None]) -> Speed:
    meter = await Meter.start(site.servers)
    began_at = time.perf_counter()
    await asyncio.to_thread(work)
    seconds = time.perf_counter() - began_at
    return Speed(per_second=round(messages / seconds, 1), cost=await meter.read(messages))


def _declare(channel: RawChannel) -> None:
    for name in (*prerequisites(QUEUE), QUEUE):
        channel.call(
            Queue.Declare(queue=name, durable=True, arguments=dict(arguments(name))), Queue.DeclareOk
        )


def _message(body: bytes) -> bytes:
    """Encode a publication as ours are, but for the id that differs from one to the next."""
    properties = Basic.Properties(
        content_type="application/json", delivery_mode=PERSISTENT, message_id=f"{Ids().new().hex}.1"
    )
    frames = (
        Basic.Publish(exchange="", routing_key=QUEUE, mandatory=True),
        ContentHeader(properties=properties, body_size=len(body)),
        ContentBody(body),
    )
    return b"".join(pamqp.frame.marshal(frame, 1) for frame in frames)
