"""The servers that tests use: PostgreSQL and its databases, RabbitMQ and its vhosts.

A private server has its own ports, names and folders, and the kernel ends it (PR_SET_PDEATHSIG) when pytest
dies, by kill -9 too. A running one (TEST_POSTGRES_URL, TEST_RABBITMQ_URL) lends a database or a vhost of its
own, and is never stopped.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import msgspec
import psqlpy

from storage.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path


class Database(msgspec.Struct, frozen=True):
    """Where a database is; host may be the folder of a unix socket."""

    host: str
    port: int
    user: str
    password: str
    database: str

    async def connect(self) -> psqlpy.Connection:
        return await psqlpy.connect(
            host=self.host,
            port=self.port,
            username=self.user,
            password=self.password,
            db_name=self.database,
        )


class PostgresServer:
    """A server seen from the one database that is there already."""

    def __init__(self, home: Database) -> None:
        self.home = home

    @classmethod
    def running(cls, url: str) -> PostgresServer:
        parts = urlsplit(url)
        user, password = unquote(parts.username or "postgres"), unquote(parts.password or "")
        database = parts.path.removeprefix("/") or "postgres"
        return cls(Database(parts.hostname or "127.0.0.1", parts.port or 5432, user, password, database))

    @asynccontextmanager
    async def database(self, template: str = "template1") -> AsyncIterator[Database]:
        """Make a database, and drop it afterwards whoever is still connected."""
        name = f"test_{secrets.token_hex(6)}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield msgspec.structs.replace(self.home, database=name)
        finally:
            await self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        connection = await self.home.connect()
        try:
            await connection.execute(statement)
        finally:
            connection.close()


class OwnPostgres(PostgresServer):
    """A server for one test alone, which may do to it what it likes."""

    def __init__(self, embedded: EmbeddedPostgres) -> None:
        home = Database(embedded.host, embedded.port, embedded.user, "", embedded.database)
        super().__init__(home)
        self._embedded = embedded

    def pids(self) -> list[int]:
        """List the processes of the server, the postmaster first."""
        return self._embedded.processes()

    def pause(self) -> None:
        """Stop every process of the server where it stands; connections stay open."""
        for _ in range(2):  # the second round finds what the postmaster forked before it stood still
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End the server as a crash would: connections break, the next start recovers."""
        await self._embedded.stop(immediate=True)

    async def start(self) -> None:
        await self._embedded.start()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._embedded.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@asynccontextmanager
async def private_postgres(
    folder: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[OwnPostgres]:
    async with EmbeddedPostgres(folder, settings={"max_connections": "200", **settings}) as embedded:
        server = OwnPostgres(embedded)
        try:
            yield server
        finally:
            server.resume()
    shutil.rmtree(folder)


class RabbitmqError(Exception):
    """RabbitMQ, or one of its programs, did not do as asked."""


class Depth(msgspec.Struct, frozen=True):
    """How many messages of a queue wait, and how many are with consumers."""

    ready: int
    unacked: int


class RabbitmqServer(ABC):
    """A broker at `amqp://user:password@host:port`, and the vhosts made in it for tests."""

    vhosts_at_once: int  # made and deleted together, where each call is slow

    def __init__(self, address: str) -> None:
        self._address = address
        self._user = unquote(urlsplit(address).username or "guest")
        self._spare: list[str] = []
        self._used: list[str] = []

    @abstractmethod
    async def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints; takes up to a second or two. Raises RabbitmqError."""

    @abstractmethod
    async def evaluate(self, expression: str) -> str:
        """Return the value of an Erlang expression, as the broker prints it; raises RabbitmqError."""

    def url(self, vhost: str = "/") -> str:
        return f"{self._address}/{quote(vhost, safe='')}"

    @asynccontextmanager
    async def vhost(self) -> AsyncIterator[Vhost]:
        """Lend a fresh vhost, and delete it afterwards."""
        if not self._spare:
            names = [f"test-{secrets.token_hex(6)}" for _ in range(self.vhosts_at_once)]
            await self._for_each(names, _ADD_VHOST.replace("USER", self._user))
            self._spare = names
        name = self._spare.pop()
        try:
            yield Vhost(self, name)
        finally:
            self._used.append(name)
            if len(self._used) >= self.vhosts_at_once:
                await self.delete_vhosts()

    async def delete_vhosts(self) -> None:
        """Delete the vhosts that no test uses, used and spare ones."""
        names, self._used, self._spare = self._used + self._spare, [], []
        await self._for_each(names, 'rabbit_vhost:delete(N, <<"tests">>)')

    async def queue_depths(self, vhost: str = "/") -> dict[str, Depth]:
        """Return each queue's depth of this moment; `rabbitmqctl list_queues` is up to 5 s behind."""
        printed = await self.evaluate(_DEPTHS.replace("VHOST", vhost))
        rows = re.findall(r'\{"([^"]*)",\s*(\d+),\s*(\d+)\}', printed)
        return {name: Depth(int(ready), int(unacked)) for name, ready, unacked in rows}

    async def write_down(self) -> None:
        """Make the broker write down which quorum queues exist.

        RabbitMQ 3.10 does so within 5 s. Killed before, it forgets one, or elects no leader for it.
        """
        await self.evaluate("[ok = dets:sync(Table) || Table <- dets:all()].")

    async def _for_each(self, names: list[str], expression: str) -> None:
        listed = ",".join(f'<<"{name}">>' for name in names)
        await self.evaluate(f"lists:foreach(fun(N) -> ok = {expression} end, [{listed}]).")


class RunningRabbitmq(RabbitmqServer):
    """A broker of this machine that someone else started, through the machine's own rabbitmqctl."""

    vhosts_at_once = 20

    async def ctl(self, *arguments: str) -> str:
        return await output_of("rabbitmqctl", "--quiet", *arguments)

    async def evaluate(self, expression: str) -> str:
        return await self.ctl("eval", expression)


async def output_of(*command: str, say: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Return what a program of RabbitMQ prints; raises RabbitmqError with its last words."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=environment
        )
    except OSError as error:
        raise RabbitmqError(f"{command[0]}: {error.strerror}") from error
    try:
        printed = (await process.communicate(say.encode()))[0].decode(errors="replace").strip()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        raise RabbitmqError(f"{' '.join(command)}: {printed or process.returncode}")
    return printed


_ADD_VHOST = """begin
    ok = rabbit_vhost:add(N, <<"tests">>),
    rabbit_auth_backend_internal:set_permissions(<<"USER">>, N, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
end"""

_DEPTHS = """
Ask = fun(Queue, Question) ->
    {ok, {_, Count}, _} = ra:leader_query(amqqueue:get_pid(Queue), {rabbit_fifo, Question, []}), Count
end,
[case amqqueue:get_type(Queue) of
    rabbit_quorum_queue -> {Name,
        Ask(Queue, query_messages_ready),
        Ask(Queue, query_messages_checked_out)};
    _ -> [{_, Ready}, {_, Unacked}] = rabbit_amqqueue:info(Queue, [messages_ready, messages_unacknowledged]),
        {Name, Ready, Unacked}
end || Queue <- rabbit_amqqueue:list(<<"VHOST">>),
       Name <- [binary_to_list(element(4, amqqueue:get_name(Queue)))]].
"""


class Vhost(msgspec.Struct, frozen=True):
    """One vhost of a broker, for one test."""

    server: RabbitmqServer
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    async def queue_depths(self) -> dict[str, Depth]:
        return await self.server.queue_depths(self.name)
