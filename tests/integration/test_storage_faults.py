"""The database is paused, killed, its backends terminated: nobody hangs, and what was answered is true."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
import pytest

from storage.channels import DONE
from storage.database import Database
from storage.errors import OutcomeUnknown, StorageError, Unavailable
from storage.group_commit import GroupCommit
from storage.ledger import PostgresLedger
from tests.support.builders import submission
from tests.support.ledgers import address_of, connected, migrated
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from pipeline.ports import Subscriber
    from storage.database import Address
    from storage.model import Submission
    from tests.support.servers import OwnPostgres

    StartPostgres = Callable[[], Awaitable[OwnPostgres]]

ROOT = Path(__file__).parents[2]
SLACK_SECONDS = 0.7
LOST = {Unavailable, OutcomeUnknown}
TERMINATE = """SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE $1"""


class Submitters:
    """Eight clients, each sending one task after the other; any error but ours ends its client."""

    def __init__(self, submit: Callable[[Submission], Awaitable[object]]) -> None:
        self._submit = submit
        self.accepted: list[UUID] = []
        self.failures: set[type[StorageError]] = set()
        self._clients = [asyncio.create_task(self._run()) for _ in range(8)]

    async def _run(self) -> None:
        while True:
            one = submission()
            try:
                await self._submit(one)
            except StorageError as error:
                self.failures.add(type(error))
                await asyncio.sleep(0.02)
            else:
                self.accepted.append(one.id)

    async def more(self, count: int) -> None:
        """Wait until `count` more are accepted."""
        target = len(self.accepted) + count
        await eventually(lambda: len(self.accepted) >= target, seconds=20)

    async def stop(self) -> None:
        for client in self._clients:
            client.cancel()
        ends = await asyncio.gather(*self._clients, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError}


async def missing(address: Address, ids: list[UUID]) -> int:
    """How many of the accepted tasks are not there, whole."""
    async with connected(address) as database:
        [(there,)] = await database.fetch(
            """SELECT count(*)::int FROM unnest($1::uuid[]) AS given(id) JOIN tasks t ON t.id = given.id
               JOIN payloads p ON p.task_id = t.id JOIN outbox o ON o.task_id = t.id""",
            [ids],
        )
    return len(ids) - int(there)


async def test_a_worker_compares_notes_while_its_work_waits_for_connections(
    own_postgres: StartPostgres,
) -> None:
    """Between two heartbeats lies this question: behind a full pool it would make the worker look dead."""
    address = await migrated((await own_postgres()).home)
    async with PostgresLedger(address, pool_size=1) as ledger:
        busy = asyncio.create_task(ledger._work.fetch("SELECT 1 FROM pg_sleep(1)"))
        await asyncio.sleep(0)
        assert await ledger.workers.held_by(uuid4()) == []
        assert not busy.done()
        await busy


async def test_a_paused_server_is_answered_for_in_time_and_found_again(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    async with connected(address_of(server.home), size=4, timeout_seconds=2.0) as database:
        await asyncio.gather(*(database.fetch("SELECT 1") for _ in range(4)))
        server.pause()
        started_at = time.monotonic()

        answers = await asyncio.gather(
            *(database.fetch("SELECT 1") for _ in range(100)), return_exceptions=True
        )

        assert time.monotonic() - started_at < database.timeout_seconds + SLACK_SECONDS
        assert {type(answer) for answer in answers} == LOST
        server.resume()
        assert await asyncio.gather(*(database.fetch("SELECT 1") for _ in range(8))) == [[(1,)]] * 8


async def test_what_was_under_way_when_the_server_died_is_unknown(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    async with connected(address_of(server.home)) as database:
        await database.script("CREATE SEQUENCE reached")
        asked = asyncio.create_task(database.fetch("SELECT nextval('reached'), pg_sleep(60)::text"))
        async with connected(address_of(server.home)) as watch:
            await eventually(lambda: watch.fetch("SELECT 1 FROM reached WHERE is_called"))
        await server.kill()
        # It may have been carried out. That nobody answers the second try does not make it undone.
        with pytest.raises(OutcomeUnknown):
            await asked
        with pytest.raises(Unavailable):
            await database.fetch("SELECT 1")
        await server.start()
        assert await database.fetch("SELECT 1") == [(1,)]


async def test_every_accepted_task_outlives_a_killed_server(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    address = await migrated(server.home)
    async with PostgresLedger(address) as ledger:
        commit = GroupCommit(ledger.submissions.submit)
        alone = Submitters(lambda one: ledger.submissions.submit([one]))
        grouped = Submitters(commit.add)
        for _ in range(3):
            await alone.more(100)
            await grouped.more(100)
            await server.kill()
            await server.start()
        await alone.more(100)
        await grouped.more(100)
        await alone.stop()
        await grouped.stop()
        await commit.close(grace_seconds=5.0)
    assert (alone.failures <= LOST, grouped.failures) == (True, set())
    assert await missing(address, alone.accepted + grouped.accepted) == 0


async def test_terminated_backends_cost_nobody_an_answer(ledger_database: Address) -> None:
    watch = Database(ledger_database, size=1, application_name="watch")
    async with PostgresLedger(ledger_database) as ledger:
        commit = GroupCommit(ledger.submissions.submit)
        alone = Submitters(lambda one: ledger.submissions.submit([one]))
        grouped = Submitters(commit.add)
        terminated = 0
        for _ in range(15):
            await asyncio.sleep(0.2)
            [(count,)] = await watch.fetch(TERMINATE, ["baton%"])
            terminated += count
        assert terminated > 15
        await grouped.more(100)
        await alone.stop()
        await grouped.stop()
        await commit.close(grace_seconds=5.0)
    assert (alone.failures <= LOST, grouped.failures) == (True, set())
    assert await missing(ledger_database, alone.accepted + grouped.accepted) == 0
    await watch.close()


async def test_a_terminated_listener_comes_back_and_wakes(ledger_database: Address) -> None:
    async with (
        PostgresLedger(ledger_database) as ledger,
        ledger.signals.subscribe(DONE) as subscriber,
        connected(ledger_database) as watch,
    ):
        await subscriber.wait(5.0)  # the first wake-up says that it listens
        assert await watch.fetch(TERMINATE, ["baton-listener"]) == [(1,)]

        await _woken(subscriber, within_seconds=5.0)  # whatever was notified meanwhile
        ledger.signals.notify(DONE)
        await _woken(subscriber, within_seconds=1.0)


async def test_what_is_notified_after_the_first_wake_up_wakes(ledger_database: Address) -> None:
    async with PostgresLedger(ledger_database) as ledger, connected(ledger_database) as other:
        for _ in range(50):
            async with ledger.signals.subscribe(DONE) as subscriber:
                await subscriber.wait(5.0)
                await other.tell(f"NOTIFY {DONE}")
                await _woken(subscriber, within_seconds=1.0)


async def _woken(subscriber: Subscriber, within_seconds: float) -> None:
    started_at = time.monotonic()
    await subscriber.wait(within_seconds + 1.0)
    assert time.monotonic() - started_at < within_seconds


async def test_a_subscription_ends_while_the_server_stands_still(own_postgres: StartPostgres) -> None:
    server = await own_postgres()
    address = await migrated(server.home)
    async with asyncio.timeout(15.0), PostgresLedger(address, timeout_seconds=2.0) as ledger:
        async with ledger.signals.subscribe(DONE) as subscriber:
            await subscriber.wait(5.0)
            ledger.signals.notify(DONE)
            server.pause()
            ledger.signals.notify(DONE)
            paused_at = time.monotonic()
        assert time.monotonic() - paused_at < SLACK_SECONDS
    assert time.monotonic() - paused_at < 2 * 2.0 + SLACK_SECONDS


LEAVE = """
import asyncio, sys
import msgspec
from storage.database import Address
from storage.ledger import PostgresLedger
from storage.channels import DONE
from tests.support.builders import submission

async def main():
    address = msgspec.json.decode(sys.stdin.buffer.read(), type=Address)
    async with PostgresLedger(address, pool_size=8) as ledger, ledger.signals.subscribe(DONE) as subscriber:
        await subscriber.wait(5.0)

        async def submit():
            while True:
                await ledger.submissions.submit([submission()])

        clients = [asyncio.create_task(submit()) for _ in range(16)]
        await asyncio.sleep(0.1)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)

asyncio.run(main())
"""


async def test_an_interpreter_leaves_in_peace_with_calls_under_way(ledger_database: Address) -> None:
    assert await asyncio.gather(*(_leave(ledger_database) for _ in range(6))) == [(0, "")] * 6


async def _leave(address: Address) -> tuple[int | None, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEAVE, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate(msgspec.json.encode(address))
    return process.returncode, said.decode()
