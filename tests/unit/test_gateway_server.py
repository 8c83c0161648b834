"""The gateway on a real socket of the loopback: start, what is no HTTP, and drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from gateway.app import create_app
from gateway.server import serve
from gateway.settings import GatewaySettings
from gateway.wire import Gathering
from pipeline.handlers import load
from pipeline.http_server import PortTaken, listen
from pipeline.monitoring import Metrics
from storage.errors import Unavailable
from tests.support.gateway import TASKS, Broken, Hands, served
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.wire import BoundedHttp
    from tests.support.gateway import Served

PROBLEM = b"content-type: application/problem+json"


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % TASKS.encode(), b"host: localhost", b"content-type: application/json"]
    return b"\r\n".join([*lines, *headers, b"", body])


class TestStart:
    async def test_it_tells_its_port_and_serves(self) -> None:
        async with served() as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
            response = await client.post(TASKS, json={"kind": "echo"})
            shown = await client.get(response.headers["location"])

        assert not gateway.url.endswith(":0")
        assert (response.status_code, shown.status_code) == (201, 200)
        assert "server" not in response.headers

    async def test_a_database_that_is_away_does_not_keep_it_from_starting(self) -> None:
        away = Broken(Unavailable("connection refused"))
        ledger = Hands(clock_offset_seconds=away.clock_offset_seconds, ready=away.ready)
        async with served(ledger) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health/ready")).status_code == 503

    async def test_a_taken_port_is_named_with_its_holder(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port} is taken by process {os.getpid()} "):
                listen("127.0.0.1", port)

    async def test_serving_on_a_taken_port_raises(self) -> None:
        app = create_app(Hands(), load([]), GatewaySettings(), Metrics())
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortTaken):
            await serve(app, "127.0.0.1", other.getsockname()[1], asyncio.Event(), 1.0, print)

    def test_an_address_of_another_machine_is_named(self) -> None:
        with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:"):
            listen("192.0.2.1", 8000)

    async def test_signals_are_left_to_the_role(self) -> None:
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        async with served():
            assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Served]:
    async with served() as gateway:
        yield gateway


@pytest.mark.asyncio(loop_scope="module")
class TestWire:
    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"hello\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\n b: folded\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01",
            post(b"{}", b"content-length: -1"),
            post(b"{}", b"content-length: x"),
            post(b"{}", b"content-length: 2", b"content-length: 3"),
            post(b"0\r\n\r\n", b"content-length: 5", b"transfer-encoding: chunked"),
        ],
    )
    async def test_what_is_no_http_is_a_400(self, shared: Served, request_bytes: bytes) -> None:
        answer = await shared.exchange(request_bytes)

        assert answer.startswith(b"HTTP/1.1 400 ")
        assert PROBLEM in answer
        assert b"connection: close" in answer

    @pytest.mark.parametrize(
        "parts",
        [
            [b"GET / HTTP/1.1\r\nx: " + b"x" * 17_000 + b"\r\n\r\n"],
            [b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 9_000 + b"\r\n"],
            [b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\n\r\n"],
            [b"GET / HTTP/1.1\r\nx: ", *[b"x" * 6_000] * 3],
        ],
    )
    async def test_a_head_too_large_is_a_431(self, shared: Served, parts: list[bytes]) -> None:
        answer = await shared.exchange(*parts)

        assert answer.startswith(b"HTTP/1.1 431 ")
        assert PROBLEM in answer

    async def test_a_large_body_behind_a_small_head_is_none(self, shared: Served) -> None:
        body = b'{"kind":"echo","payload":"%b"}' % (b"x" * 200_000)
        answer = await shared.exchange(post(body, b"content-length: %d" % len(body), b"connection: close"))

        assert answer.startswith(b"HTTP/1.1 201 ")

    async def test_requests_that_follow_one_another_are_each_bounded(self, shared: Served) -> None:
        get = b"GET %b HTTP/1.1\r\nhost: localhost\r\nx: %b\r\n" % (TASKS.encode(), b"x" * 9_000)
        answer = await shared.exchange(get + b"\r\n", get + b"\r\n", get + b"connection: close\r\n\r\n")

        assert answer.count(b"HTTP/1.1 200 ") == 3

    async def test_a_body_too_large_is_refused_and_the_connection_closed(self, shared: Served) -> None:
        answer = await shared.exchange(post(b"", b"content-length: 300000"))

        assert answer.startswith(b"HTTP/1.1 413 ")

    async def test_an_endless_body_is_refused(self, shared: Served) -> None:
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        answer = await shared.exchange(post(chunk * 5, b"transfer-encoding: chunked"))

        assert answer.startswith(b"HTTP/1.1 413 ")


class TestConnection:
    async def test_a_head_that_does_not_end_is_given_up(self) -> None:
        async with served() as gateway:
            reader, writer = await gateway.open()
            writer.write(b"GET / HTTP/1.1\r\n")
            connection = await eventually(lambda: _begun(gateway))
            connection._give_up()  # as its timer does after HEAD_SECONDS
            answer = await reader.read()
            writer.close()

        assert answer.startswith(b"HTTP/1.1 408 ")

    async def test_a_connection_that_asks_nothing_is_closed(self) -> None:
        async with served() as gateway:
            reader, writer = await gateway.open()
            connection = await eventually(lambda: _connection(gateway))
            assert connection._head_timer is not None
            connection._give_up()
            assert await reader.read() == b""
            writer.close()

    async def test_the_clock_runs_only_while_a_head_arrives(self) -> None:
        async with served() as gateway:
            reader, writer = await gateway.open()
            get = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
            writer.write(get)
            await reader.readuntil(b"}")
            assert _connection(gateway)._head_timer is None
            writer.write(get[:9])
            await eventually(lambda: _connection(gateway)._head_timer)
            writer.write(get[9:])
            await reader.readuntil(b"}")
            assert _connection(gateway)._head_timer is None
            writer.close()

    async def test_a_body_that_does_not_end_is_given_up(self) -> None:
        async with served(request_timeout_seconds=0.05) as gateway:
            reader, writer = await gateway.open()
            writer.write(post(b'{"kind":', b"content-length: 100"))
            answer = await reader.read()
            writer.close()
            await eventually(lambda: not _server_tasks(gateway))

        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in answer
        assert b"the body was not complete after 0.05 seconds" in answer

    async def test_a_body_in_pieces_has_its_time_and_the_next_request_its_own(self) -> None:
        body = b'{"kind":"echo"}'
        async with served(request_timeout_seconds=5.0) as gateway:
            reader, writer = await gateway.open()
            for _ in range(2):
                writer.write(post(body[:4], b"content-length: %d" % len(body)))
                await eventually(lambda: _connection(gateway)._body_timer)
                writer.write(body[4:])
                head = (await reader.readuntil(b"\r\n\r\n")).partition(b"content-length: ")[2]
                await reader.readexactly(int(head.split()[0]))
                assert _connection(gateway)._body_timer is None
            writer.close()

    async def test_an_answer_that_has_begun_is_not_answered_again(self) -> None:
        async with served(request_timeout_seconds=5.0) as gateway:
            reader, writer = await gateway.open()
            writer.write(post(b'{"kind":', b"content-length: 100", b"content-encoding: gzip"))
            answer = await reader.readuntil(b"}")
            connection = _connection(gateway)
            if connection is not None:
                connection._give_up_body()
            answer += await reader.read()
            writer.close()

        assert answer.startswith(b"HTTP/1.1 415 ")
        assert answer.count(b"HTTP/1.1 ") == 1

    async def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_failure(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with served() as gateway:
            _, writer = await gateway.open()
            writer.write(post(b'{"kind":', b"content-length: 100"))
            await eventually(lambda: _server_tasks(gateway))
            writer.close()
            await eventually(lambda: not _server_tasks(gateway))

        assert not caplog.records

    async def test_a_client_that_leaves_after_its_request_does_not_stop_the_write(self) -> None:
        body = b'{"kind":"echo"}'
        async with served() as gateway:
            _, writer = await gateway.open()
            writer.write(post(body, b"content-length: %d" % len(body)))
            writer.close()
            await eventually(lambda: gateway.ledger._state.tasks)


class TestDrain:
    async def test_waiters_are_answered_and_the_port_is_free(self) -> None:
        async with served() as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
            task = (await client.post(TASKS, json={"kind": "echo"})).json()
            waiter = asyncio.create_task(client.get(f"{TASKS}/{task['id']}?wait=60"))
            await eventually(lambda: len(gateway.app.state.waiting) == 1)
            gateway.stop.set()
            async with asyncio.timeout(3.0):
                response = await waiter
                await gateway.serving

        assert response.json()["status"] == "NEW"
        listen("127.0.0.1", int(gateway.url.rpartition(":")[2])).close()

    async def test_a_request_that_runs_is_finished(self) -> None:
        ledger = Hands()
        submit, entered, leave = ledger.submissions.submit, asyncio.Event(), asyncio.Event()

        async def slow(submissions: Any) -> Any:
            entered.set()
            await leave.wait()
            return await submit(submissions)

        ledger.submissions.submit = slow  # type: ignore[method-assign]  # one call is to be held up
        async with served(ledger) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
            posting = asyncio.create_task(client.post(TASKS, json={"kind": "echo"}))
            await entered.wait()
            gateway.stop.set()
            await asyncio.sleep(0.15)
            leave.set()
            response = await posting

        assert response.status_code == 201

    async def test_what_the_lanes_hold_is_written_after_its_request_has_given_up(self) -> None:
        ledger = Hands()
        submit, leave = ledger.submissions.submit, asyncio.Event()

        async def slow(submissions: Any) -> Any:
            await leave.wait()
            return await submit(submissions)

        ledger.submissions.submit = slow  # type: ignore[method-assign]  # one call is to be held up
        async with (
            served(ledger, request_timeout_seconds=0.05) as gateway,
            httpx.AsyncClient(base_url=gateway.url) as client,
        ):
            response = await client.post(TASKS, json={"kind": "echo"})
            gateway.stop.set()
            done, _ = await asyncio.wait(
                {gateway.serving}, timeout=0.5
            )  # uvicorn alone stops in half of that
            assert not done
            leave.set()
            await gateway.serving

        assert response.status_code == 503
        assert len(ledger._state.tasks) == 1

    async def test_the_grace_is_kept(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("CRITICAL")
        ledger = Hands(submissions=Broken())
        async with served(ledger, grace_seconds=0.3) as gateway:
            _, writer = await gateway.open()
            writer.write(post(b'{"kind":"echo"}', b"content-length: 15"))
            await eventually(lambda: gateway.app.state.intake.waiting == 1)
            gateway.stop.set()
            async with asyncio.timeout(3.0):
                await gateway.serving
            writer.close()


def _server(gateway: Served) -> Any:
    """Find uvicorn's server in the frame of `serve`: nothing else needs it from outside."""
    frame: Any = gateway.serving.get_coro().cr_frame  # type: ignore[union-attr]  # it is a coroutine
    return frame.f_locals["server"]


def _connection(gateway: Served) -> BoundedHttp | Any:
    return next(iter(_server(gateway).server_state.connections), None)


def _begun(gateway: Served) -> BoundedHttp | Any:
    connection = _connection(gateway)
    return connection if connection is not None and connection._head_bytes else None


def _server_tasks(gateway: Served) -> set[Any]:
    tasks: set[Any] = _server(gateway).server_state.tasks
    return tasks


class Lost(asyncio.Transport):
    """A transport that takes what is written until its connection is lost, as uvloop's do."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = False
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.lost:
            raise RuntimeError("the handler is closed")
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.lost


class TestGathering:
    async def test_what_is_written_within_one_turn_leaves_in_one_piece(self) -> None:
        transport = Lost()
        gathering = Gathering(transport, asyncio.get_running_loop())
        gathering.write(b"head ")
        gathering.write(b"body")
        assert transport.written == []
        await asyncio.sleep(0)
        gathering.write(b"next")
        await asyncio.sleep(0)
        assert transport.written == [b"head body", b"next"]

    async def test_what_is_written_to_a_connection_that_is_lost_meanwhile_is_dropped(self) -> None:
        loop, failures = asyncio.get_running_loop(), list[object]()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        transport = Lost()
        Gathering(transport, loop).write(b"answer")
        transport.lost = True
        await asyncio.sleep(0)
        assert (transport.written, failures) == ([], [])
