"""A connection that has ended is the sign of a dead worker; here it lies, in each way in which it could."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from pipeline.stages import Rescue
from storage.errors import StorageError
from storage.ledger import PostgresLedger
from tests.support.builders import beat
from tests.support.ledgers import connected, migrated
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from storage.database import Address, Database
    from tests.support.servers import OwnPostgres

    StartPostgres = Callable[[], Awaitable[OwnPostgres]]

LEASE_SECONDS = 300.0
BEAT_SECONDS = 0.1
ROUND_SECONDS = 0.2
BACKEND_PID = "SELECT backend_pid FROM workers WHERE id = $1"
BEATS = """SELECT pid FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()
           AND query LIKE '%INSERT INTO workers%' ORDER BY query_start DESC"""
TERMINATE = "SELECT pg_terminate_backend($1::int, 10000)"
SWEEP = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()
           AND application_name LIKE 'baton%'"""


class Worker:
    """Beats as a worker does, whatever the database answers, and knows whether it was declared dead."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self.id = uuid4()
        self.alive = True
        self._ledger = ledger

    async def beat(self) -> None:
        """Beat once; raises StorageError."""
        self.alive &= await self._ledger.workers.beat(beat(self.id))

    async def live(self) -> None:
        while True:
            with suppress(StorageError):
                await self.beat()
            await asyncio.sleep(BEAT_SECONDS)


class Janitor:
    """Looks after workers as a janitor does, for a lease that no test waits for."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self._ledger = ledger
        self._rescue = Rescue(ledger.upkeep, ledger.workers, LEASE_SECONDS)

    async def sees_gone(self, worker: Worker) -> bool:
        return worker.id in [one.worker_id for one in await self._ledger.workers.disconnected()]

    async def work(self, rounds: int = 8) -> None:
        """Run rounds, three more than it takes to declare somebody dead."""
        for _ in range(rounds):
            with suppress(StorageError):
                await self._rescue(None)
            await asyncio.sleep(ROUND_SECONDS)


@asynccontextmanager
async def fleet(
    address: Address, *, janitors: Address | None = None, timeout_seconds: float = 10.0
) -> AsyncIterator[tuple[Worker, Janitor, Database]]:
    """A worker that has beaten once, a janitor that was there before, and a hand in the database."""
    async with (
        PostgresLedger(janitors or address, timeout_seconds=timeout_seconds) as rescuing,
        PostgresLedger(address, timeout_seconds=timeout_seconds) as working,
        connected(address) as database,
    ):
        janitor, worker = Janitor(rescuing), Worker(working)
        assert not await janitor.sees_gone(worker)
        await worker.beat()
        yield worker, janitor, database


@asynccontextmanager
async def beating(worker: Worker) -> AsyncIterator[None]:
    living = asyncio.create_task(worker.live())
    try:
        yield
    finally:
        living.cancel()
        await asyncio.wait({living})


async def cut_off(database: Database, worker: Worker) -> None:
    """End the backend that serves the worker's heartbeats."""
    [(pid,)] = await database.fetch(BACKEND_PID, [worker.id])
    assert await database.fetch(TERMINATE, [pid]) == [(True,)]


async def test_the_truth(ledger_database: Address) -> None:
    async with fleet(ledger_database) as (worker, janitor, database):
        await cut_off(database, worker)
        assert await janitor.sees_gone(worker)
        await janitor.work()
        await worker.beat()
        assert not worker.alive


async def test_a_worker_that_closed_its_connection_after_an_error_beats_over_another_one(
    ledger_database: Address,
) -> None:
    async with fleet(ledger_database, timeout_seconds=0.5) as (worker, janitor, database):
        lock = asyncio.create_task(database.script("SELECT FROM workers FOR UPDATE; SELECT pg_sleep(1.5)"))
        async with beating(worker):
            await eventually(lambda: janitor.sees_gone(worker))
            await lock
            await janitor.work()
            assert worker.alive


async def test_of_two_connections_the_one_that_brought_the_last_beat_counts(ledger_database: Address) -> None:
    async with fleet(ledger_database) as (worker, janitor, database):
        [first] = await database.fetch(BEATS)

        async def taken_over() -> bool:
            await asyncio.gather(worker.beat(), worker.beat())
            last, _ = await database.fetch(BEATS)
            return bool(last != first)

        await eventually(taken_over)
        assert await database.fetch(TERMINATE, first) == [(True,)]
        assert not await janitor.sees_gone(worker)


async def test_a_pooler_between_keeps_the_backend_and_so_the_worker_its_lease(
    ledger_database: Address,
) -> None:
    async with fleet(ledger_database) as (_, janitor, _), PostgresLedger(ledger_database) as pooler:
        gone = Worker(pooler)
        await gone.beat()
        await janitor.work()
        assert not await janitor.sees_gone(gone)
        await gone.beat()
        assert gone.alive


async def test_a_pid_that_another_session_has_by_now_leaves_the_worker_its_lease(
    ledger_database: Address,
) -> None:
    async with fleet(ledger_database) as (worker, janitor, database):
        await cut_off(database, worker)
        await database.fetch("UPDATE workers SET backend_pid = pg_backend_pid() RETURNING 1")
        assert not await janitor.sees_gone(worker)


async def test_a_janitor_that_may_not_look_into_the_sessions_of_workers_sees_whether_they_are_there(
    ledger_database: Address,
) -> None:
    async with connected(ledger_database) as database:
        roles = [f"{name}_of_{ledger_database.database}" for name in ("worker", "janitor")]
        for role in roles:
            await database.script(
                f"CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
            )
        working, rescuing = (replace(ledger_database, user=role) for role in roles)
        async with fleet(working, janitors=rescuing) as (worker, janitor, _):
            assert not await janitor.sees_gone(worker)
            await cut_off(database, worker)
            assert await janitor.sees_gone(worker)
        await database.script("".join(f"DROP OWNED BY {role}; DROP ROLE {role};" for role in roles))


async def test_a_sweep_that_ends_all_sessions_again_and_again_kills_nobody(ledger_database: Address) -> None:
    async with fleet(ledger_database) as (worker, janitor, database), beating(worker):
        seen = 0
        for _ in range(25):
            assert await database.fetch(SWEEP)
            seen += await janitor.sees_gone(worker)
            await janitor.work(1)
        assert seen, "the worker was back each time before the janitor looked"
        assert worker.alive


async def test_a_worker_that_a_sweep_has_ended_with_all_others_keeps_its_lease(
    ledger_database: Address,
) -> None:
    async with fleet(ledger_database) as (worker, janitor, _):
        async with connected(ledger_database) as sweeper:
            await sweeper.fetch(SWEEP)
            await eventually(lambda: _gone(sweeper, worker.id))
        await janitor.work()
        await worker.beat()
        assert worker.alive


async def _gone(database: Database, worker_id: UUID) -> bool:
    backends = "SELECT 1 FROM workers w JOIN pg_stat_activity a ON a.pid = w.backend_pid WHERE w.id = $1"
    return not await database.fetch(backends, [worker_id])


@pytest.mark.parametrize("fault", ["stopped", "a backend killed"])
async def test_a_restart_of_the_server_says_nothing_until_the_worker_has_beaten_again(
    own_postgres: StartPostgres, fault: str
) -> None:
    server = await own_postgres()
    async with fleet(await migrated(server.home)) as (worker, janitor, database):
        if fault == "stopped":
            await server.kill()
            await server.start()
        else:
            # The postmaster then ends all the others, and goes on.
            [(pid,)] = await database.fetch("SELECT pg_backend_pid()")
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: _answers(database), seconds=60)
        assert not await janitor.sees_gone(worker)
        await janitor.work()
        await worker.beat()
        assert worker.alive
        await cut_off(database, worker)
        assert await janitor.sees_gone(worker)


async def _answers(database: Database) -> bool:
    try:
        return bool(await database.fetch("SELECT 1"))
    except StorageError:
        return False


async def test_a_paused_database_kills_nobody(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    address = await migrated(server.home)
    async with fleet(address, timeout_seconds=0.5) as (worker, janitor, _), beating(worker):
        for _ in range(2):
            server.pause()
            await janitor.work(5)
            server.resume()
            await janitor.work(5)
        assert worker.alive
