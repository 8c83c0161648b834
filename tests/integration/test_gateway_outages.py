"""The database dies, stands still, is full: each request is answered in time, and no answer is a lie."""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
from psqlpy.exceptions import Error
from structlog.testing import capture_logs

from tests.support.gateway_on_postgres import TASKS, gateway_on, post
from tests.support.ledgers import address_of, connected, migrated
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import httpx
    import psqlpy

    from tests.support.servers import Database, OwnPostgres

    StartPostgres = Callable[[], Awaitable[OwnPostgres]]

TIMEOUT_SECONDS = 1.0
SLACK_SECONDS = 3.0
"""What 500 answers at once may take, on a machine that does other things too."""

LARGE = {"kind": "echo", "payload": "x" * 250_000}
WRITTEN = "SELECT k.key, t.id::text FROM idempotency_keys k JOIN tasks t ON t.id = ANY (k.task_ids)"
TERMINATE = """SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
               WHERE usename = $1 AND application_name LIKE 'baton%'"""
TASKS_THERE = "SELECT count(*)::int FROM tasks"


def told_to_come_back(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and int(answer.headers["retry-after"]) > 0


async def accepted(client: httpx.AsyncClient, key: str | None = None) -> str:
    """Repeat until the gateway takes it; the id."""

    async def taken() -> str:
        answer = await post(client, key)
        return str(answer.json()["id"]) if answer.status_code == 201 else ""

    return await eventually(taken, seconds=30)


class Clients:
    """Eight, each sending one keyed task after the other; every key is in the end accepted or in doubt."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.accepted: dict[str, str] = {}
        self.doubtful: list[str] = []
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._running = [asyncio.create_task(self._run()) for _ in range(8)]

    async def _run(self) -> None:
        while not self._stop.is_set():
            key = f"key-{next(self._numbers)}"
            answer = await post(self.client, key)
            if answer.status_code == 201:
                self.accepted[key] = answer.json()["id"]
            else:
                assert told_to_come_back(answer), answer.text
                self.doubtful.append(key)

    async def more(self, count: int) -> None:
        target = len(self.accepted) + count
        await eventually(lambda: len(self.accepted) >= target, seconds=30)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._running)


async def test_a_server_killed_in_a_loop_makes_no_answer_a_lie(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    address = await migrated(server.home)
    async with gateway_on(address, timeout_seconds=TIMEOUT_SECONDS) as client:
        clients = Clients(client)
        for _ in range(3):
            await clients.more(30)
            in_doubt = len(clients.doubtful)
            await server.kill()
            await eventually(lambda: len(clients.doubtful) > in_doubt)  # noqa: B023 - awaited here
            await server.start()
        await clients.more(30)
        await clients.stop()

        async with connected(address) as watch:
            there = await watch.fetch(WRITTEN)
            written: dict[str, str] = dict(there)
            assert len(there) == len(written), "a key has two tasks"
            assert clients.accepted.items() <= written.items()
            answered = {key: await accepted(client, key) for key in clients.doubtful}
            assert {key: written[key] for key in answered.keys() & written.keys()}.items() <= answered.items()
            everything = clients.accepted | answered
            assert sorted(await watch.fetch(WRITTEN)) == sorted(everything.items())
            assert await watch.fetch(TASKS_THERE) == [(len(everything),)]


async def raw(
    client: httpx.AsyncClient, method: str, path: str, body: bytes = b""
) -> tuple[int, bool, float]:
    """Ask on a connection of its own; status, whether it says Retry-After, and how long it took.

    Not by httpx: with hundreds of connections that keeps the loop, and so the gateway, busy for seconds.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    started_at = time.monotonic()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), b"\r\nretry-after: " in answer, time.monotonic() - started_at


async def test_a_server_that_stands_still_keeps_nobody_waiting(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    address = await migrated(server.home)
    async with gateway_on(address, timeout_seconds=TIMEOUT_SECONDS) as client:
        await accepted(client)
        server.pause()
        body = b'{"kind":"echo"}'
        calls = [raw(client, "POST", TASKS, body) for _ in range(400)]
        calls += [raw(client, "GET", TASKS) for _ in range(100)]
        async with asyncio.timeout(30.0):
            answers = await asyncio.gather(*calls, raw(client, "GET", "/health/ready"))
        server.resume()

        assert {(status, later) for status, later, _ in answers} == {(503, True)}
        assert max(seconds for _, _, seconds in answers) < TIMEOUT_SECONDS + SLACK_SECONDS
        await accepted(client)
        assert (await client.get("/health/ready")).status_code == 200


async def test_without_a_connection_left_a_client_is_told_to_come_back(postgres: Database) -> None:
    address = await migrated(postgres)
    async with connected(address) as operator:
        # The limit is not for superusers, as which the tests of a private server come.
        role = f"limited_{address.database}"
        await operator.script(
            f"CREATE ROLE {role} LOGIN PASSWORD 'secret' CONNECTION LIMIT 2;"
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        )
        limited = msgspec.structs.replace(postgres, user=role, password="secret")
        hogs: list[psqlpy.Connection] = []
        try:
            async with gateway_on(address_of(limited), timeout_seconds=TIMEOUT_SECONDS) as client:
                await accepted(client)
                while len(hogs) < 2:  # the gateway is quicker at times
                    await operator.fetch(TERMINATE, [role])
                    with suppress(Error):
                        hogs.append(await limited.connect())
                with capture_logs() as logs:
                    answer = await post(client, "key")
                assert told_to_come_back(answer), answer.text
                assert "too many connections" in str(logs)

                hogs.pop().close()
                await accepted(client)
                task_id = await accepted(client, "key")
                assert await operator.fetch(WRITTEN) == [("key", task_id)]
        finally:
            while hogs:
                hogs.pop().close()
            await operator.script(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_full_disk_refuses_what_does_not_fit_and_loses_nothing(own_postgres: StartPostgres) -> None:
    # A disk is full for one file at a time: none of this server's grows any more once it has this size, which
    # its log files have from the start.
    with files_of_at_most(17 << 20):
        server = await own_postgres()
    address = await migrated(server.home)
    async with gateway_on(address, timeout_seconds=TIMEOUT_SECONDS) as client, connected(address) as watch:
        await watch.script("ALTER TABLE payloads ALTER body SET STORAGE EXTERNAL")
        there = 0
        with capture_logs() as logs:
            while (answer := await client.post(TASKS, json=LARGE)).status_code == 201:
                there += 1
        assert told_to_come_back(answer), answer.text
        assert "could not extend file" in str(logs)
        assert (await client.get(TASKS)).status_code == 200
        assert await watch.fetch(TASKS_THERE) == [(there,)]

        await server.kill()
        await server.start()
        await accepted(client)
        # What was asked last has waited for a place, and got it.
        assert await watch.fetch("SELECT count(*)::int FROM payloads WHERE length(body) > 1000") == [
            (there + 1,)
        ]


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Bound the files of all programs that are started within."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
