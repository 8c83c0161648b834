"""The gateway over a ledger in memory, called through ASGI: no socket, no server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import httpx
import msgspec

from gateway.app import create_app
from gateway.server import serve
from gateway.settings import GatewaySettings
from pipeline.handlers import load
from pipeline.monitoring import Metrics
from pipeline.testing import ManualClock, MemoryLedger
from storage.model import Reference
from tests.support.builders import dead, done
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from litestar import Litestar

    from gateway.intake import Intake
    from gateway.waiting import Waiting
    from pipeline.handlers import Handlers
    from storage.model import Run

TASKS = "/api/v1/tasks"
HOST = (b"host", b"localhost")
JSON = (b"content-type", b"application/json")
WORKER_ID = UUID(int=7)


class Hands(MemoryLedger):
    """A ledger in memory of which a test replaces single hands."""

    def __init__(self, **replaced: object) -> None:
        self.clock = ManualClock()
        super().__init__(self.clock)
        vars(self).update(replaced)


class Broken:
    """A hand whose every call raises `error`, or, without one, never answers."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        async def call(*_args: object, **_kwargs: object) -> None:
            if self._error is not None:
                raise self._error
            await asyncio.Event().wait()

        return call


class Answer(NamedTuple):
    """A response as it went over ASGI."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Gateway(NamedTuple):
    """A running gateway, its ledger and a client of it."""

    app: Litestar
    ledger: Hands
    client: httpx.AsyncClient

    @property
    def intake(self) -> Intake:
        intake: Intake = self.app.state.intake
        return intake

    @property
    def waiting(self) -> Waiting:
        waiting: Waiting = self.app.state.waiting
        return waiting

    async def submit(self, **fields: object) -> dict[str, Any]:
        response = await self.client.post(TASKS, json={"kind": "echo", **fields})
        assert response.status_code == 201, response.text
        task: dict[str, Any] = response.json()
        return task

    async def start(self, task: dict[str, Any]) -> Run:
        """Claim a task, as a worker does."""
        [run] = await self.ledger.runs.claim(
            [Reference(UUID(task["id"]), task["dispatch"])], WORKER_ID, [task["kind"]]
        )
        return run

    async def complete(self, task: dict[str, Any], result: str = "null") -> None:
        await self.ledger.runs.record([done(await self.start(task), result)])

    async def fail(self, task: dict[str, Any], message: str = "boom") -> None:
        await self.ledger.runs.record([dead(await self.start(task), message)])

    async def give_up(self, task: dict[str, Any]) -> int:
        """Let the broker return a task's outbox row for good; the row's id."""
        rows = await self.ledger.outbox.poll(100, 1.0)
        [row_id] = [row.id for row in rows if str(row.task_id) == task["id"]]
        assert await self.ledger.outbox.returned([row_id], "NO_ROUTE", 1, 0.0) == [row_id]
        return row_id

    async def send(
        self,
        *chunks: bytes,
        method: str = "POST",
        path: str = TASKS,
        query: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (HOST, JSON),
        hangs_up: bool = False,
    ) -> Answer:
        """Send exactly these headers and chunks, and then perhaps hang up: httpx would mend too much."""
        messages: list[Any] = [
            {"type": "http.request", "body": chunk, "more_body": hangs_up or position < len(chunks)}
            for position, chunk in enumerate(chunks or (b"",), 1)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            if not hangs_up:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query,
            "headers": list(headers),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await self.app(scope, receive, send)
        given = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], given, b"".join(message["body"] for message in sent[1:]))


@asynccontextmanager
async def gateway(
    ledger: Hands | None = None, handlers: Handlers | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    """Open a gateway; `settings` are those of GatewaySettings."""
    hands = ledger or Hands()
    app = create_app(hands, handlers or load([]), GatewaySettings(**settings), Metrics())
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]  # the same protocol, in stricter types
    async with _running(app), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield Gateway(app, hands, client)


class Served(NamedTuple):
    """A gateway that listens."""

    app: Litestar
    ledger: Hands
    url: str
    stop: asyncio.Event
    serving: asyncio.Task[None]

    async def exchange(self, *parts: bytes) -> bytes:
        """Send raw bytes, part by part, and read until the server closes."""
        reader, writer = await self.open()
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(5.0):
                return await reader.read()
        finally:
            writer.close()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", int(self.url.rpartition(":")[2]))


@asynccontextmanager
async def served(
    ledger: Hands | None = None, grace_seconds: float = 5.0, **settings: Any
) -> AsyncIterator[Served]:
    """Open a gateway on a port of the loopback, through the very server of the role."""
    hands = ledger or Hands()
    app = create_app(hands, load([]), GatewaySettings(**settings), Metrics())
    async with on_a_port(app, grace_seconds) as (url, stop, serving):
        yield Served(app, hands, url, stop, serving)


@asynccontextmanager
async def on_a_port(
    app: Litestar, grace_seconds: float = 5.0
) -> AsyncIterator[tuple[str, asyncio.Event, asyncio.Task[None]]]:
    """Serve an app until the context ends, or until it is told to stop: its URL, the telling, the serving."""
    stop, urls = asyncio.Event(), list[str]()
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, stop, grace_seconds, urls.append))
    await eventually(lambda: urls or serving.done())
    try:
        yield urls[0], stop, serving
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def listening(ledger: Hands | None = None, **settings: Any) -> AsyncIterator[str]:
    """Open a gateway likewise; its URL.

    Nothing runs tasks, so who waits for one is answered at once.
    """
    async with served(ledger, **settings) as gateway:
        gateway.app.state.waiting.release()
        yield gateway.url


@asynccontextmanager
async def _running(app: Litestar) -> AsyncIterator[None]:
    """Keep the lifespan within one task, as anyio wants it; a fixture is closed by another than opened it."""
    up, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.lifespan():
            up.set()
            await stop.wait()

    living = asyncio.create_task(live())
    await up.wait()
    try:
        yield
    finally:
        stop.set()
        await living


def faults(answer: Any) -> dict[str, str]:
    """The failing fields of a problem, and what it says of each."""
    return {each["field"]: each["message"] for each in answer.json()["errors"]}


def problem(answer: Any) -> tuple[int, str]:
    """Status and type of an answer that must be a problem."""
    status = answer.status if isinstance(answer, Answer) else answer.status_code
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return status, body["type"].removeprefix("urn:baton:problem:")
