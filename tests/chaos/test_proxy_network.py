"""The proxy of the chaos run as a network: slow, lossy, narrow, gone; the server here is an echo."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.chaos.harness.amqp_frames import AmqpConversation
from tests.chaos.harness.connection import MOST_WAITING_BYTES
from tests.chaos.harness.proxy import Proxy
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HOST = "127.0.0.1"
SIZE = 10_000_000
TEST_SECONDS = 60.0
CHUNK_BYTES = 65_536

Reading = asyncio.StreamReader
Writing = asyncio.StreamWriter


@asynccontextmanager
async def served(serve: Callable[[Reading, Writing], Awaitable[None]]) -> AsyncIterator[Proxy]:
    """A proxy in front of a server that does as told with each connection."""
    serving: set[asyncio.Task[None] | None] = set()

    async def begin(reader: Reading, writer: Writing) -> None:
        serving.add(asyncio.current_task())
        with suppress(ConnectionError):
            await serve(reader, writer)
        await left(writer)

    async with asyncio.timeout(TEST_SECONDS), await asyncio.start_server(begin, HOST, 0) as server:
        async with Proxy(HOST, server.sockets[0].getsockname()[1], AmqpConversation) as proxy:
            yield proxy
        for task in serving:
            if task is not None:
                await task


async def left(writer: Writing) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def reset(writer: Writing) -> None:
    opened = writer.transport.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[tuple[Reading, Writing]]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield reader, writer
    finally:
        await left(writer)


async def echo(reader: Reading, writer: Writing) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()


async def silence(reader: Reading, _: Writing) -> None:
    await reader.read()


async def echoed(proxy: Proxy, size: int) -> None:
    """Send so many bytes in pieces of any size, and see the same come back, and then the end."""
    rng = random.Random(1)
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def send(writer: Writing) -> None:
        rest = size
        while rest:
            piece = rng.randbytes(min(rest, rng.choice((1, 100, 10_000, 300_000))))
            rest -= len(piece)
            sent.update(piece)
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async with connected(proxy) as (reader, writer):
        sending = asyncio.create_task(send(writer))
        while data := await reader.read(CHUNK_BYTES):
            received.update(data)
        await sending
    assert received.digest() == sent.digest()


async def test_bytes_pass_unchanged_and_so_does_their_end() -> None:
    async with served(echo) as proxy:
        await asyncio.gather(*(echoed(proxy, SIZE) for _ in range(2)))
        await eventually(lambda: proxy.connections == 0)


async def test_delay_keeps_order_and_content() -> None:
    async with served(echo) as proxy:
        async with proxy.delayed(0.001, 0.01, random.Random(2)) as effect:
            await echoed(proxy, SIZE)
        await echoed(proxy, 1000)  # not delayed any more
        assert effect.bytes == 2 * SIZE
        assert effect.chunks > 20
        assert effect.connections == 1


async def test_what_waits_keeps_its_place_when_the_delay_ends() -> None:
    async with served(echo) as proxy, connected(proxy) as (reader, writer):
        async with proxy.delayed(0.2, 0.2, random.Random(2)) as effect:
            writer.write(b"first ")
            await eventually(lambda: effect.chunks)
        writer.write(b"second")
        assert await reader.readexactly(12) == b"first second"


async def test_a_delay_takes_its_time() -> None:
    async with (
        served(echo) as proxy,
        connected(proxy) as (reader, writer),
        proxy.delayed(0.1, 0.12, random.Random(2)),
    ):
        started_at = time.monotonic()
        writer.write(b"there and back")
        await reader.readexactly(14)
        assert time.monotonic() - started_at >= 0.2


async def test_a_lost_chunk_holds_up_all_behind_it() -> None:
    async with served(echo) as proxy:
        async with proxy.lossy(0.1, 0.02, random.Random(3)) as effect:
            await echoed(proxy, SIZE)
        assert 0 < effect.bytes < 2 * SIZE
        assert effect.connections == 1


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_no_more_is_read_than_the_server_takes(seconds: float) -> None:
    async def deaf(_: Reading, __: Writing) -> None:
        await ended.wait()

    ended = asyncio.Event()
    async with served(deaf) as proxy, proxy.delayed(seconds, seconds, random.Random(4)):
        async with connected(proxy) as (_, writer):
            writer.transport.set_write_buffer_limits(0)
            taken = 0
            with suppress(TimeoutError):
                while taken < 100 * MOST_WAITING_BYTES:
                    async with asyncio.timeout(1.0):
                        writer.write(bytes(CHUNK_BYTES))
                        await writer.drain()
                    taken += CHUNK_BYTES
            # What the sockets of the kernel hold besides is up to the kernel.
            assert taken < 20 * MOST_WAITING_BYTES
            writer.transport.abort()
        ended.set()


async def test_a_reset_passes() -> None:
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def watch(reader: Reading, writer: Writing) -> None:
        writer.write(b"here")
        try:
            await reader.read()
        except ConnectionResetError:
            seen.set_result("reset")
        else:
            seen.set_result("end")

    async with served(watch) as proxy, connected(proxy) as (reader, writer):
        await reader.readexactly(4)
        reset(writer)
        assert await seen == "reset"


async def test_a_client_of_a_server_that_is_down_is_reset() -> None:
    async with await asyncio.start_server(echo, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
    async with Proxy(HOST, port, AmqpConversation) as proxy:
        async with asyncio.timeout(TEST_SECONDS), connected(proxy) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await eventually(lambda: proxy.connections == 0)


async def test_cut_resets_both_sides() -> None:
    seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def watch(reader: Reading, writer: Writing) -> None:
        writer.write(b"here")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        seen.set_result(None)

    async with served(watch) as proxy, connected(proxy) as (reader, _):
        await reader.readexactly(4)
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await seen


@pytest.mark.parametrize("leave", [reset, Writing.close])
async def test_a_black_hole_hides_even_the_end_of_a_connection(leave: Callable[[Writing], None]) -> None:
    seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def watch(reader: Reading, writer: Writing) -> None:
        writer.write(b"here")
        with suppress(ConnectionResetError):
            await reader.read()
        seen.set_result(None)

    async with served(watch) as proxy, connected(proxy) as (reader, writer):
        await reader.readexactly(4)
        async with proxy.black_hole() as effect:
            writer.write(b"gone")
            await eventually(lambda: effect.bytes == 4)
            leave(writer)
            async with connected(proxy) as (unanswered, newcomer):
                newcomer.write(b"hello")
                await eventually(lambda: effect.bytes == 9)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await unanswered.read()
                assert not seen.done()
                assert effect.connections == proxy.connections == 2
        await seen
        assert proxy.connections == 0
