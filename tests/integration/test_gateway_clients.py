"""Clients hang up, repeat themselves and race for a key: one key is one task, and a 201 is a whole one."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from tests.support.gateway_on_postgres import TASKS, gateway_on, post
from tests.support.ledgers import address_of, connected, migrated

if TYPE_CHECKING:
    import httpx

    from storage.database import Address
    from tests.support import servers

WRITTEN = """SELECT (SELECT count(*) FROM tasks)::int, (SELECT count(*) FROM payloads)::int,
                    (SELECT count(*) FROM outbox)::int, (SELECT count(*) FROM idempotency_keys)::int"""


async def hang_up(client: httpx.AsyncClient, key: str, after_seconds: float) -> None:
    """Send what `post` sends, and reset the connection."""
    body = b'{"kind":"echo","payload":{"key":"%s"}}' % key.encode()
    head = (
        f"POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    writer.write(head.encode() + body)
    await asyncio.sleep(after_seconds)
    writer.transport.abort()


async def test_who_hangs_up_at_any_moment_and_repeats_has_one_task(ledger_database: Address) -> None:
    keys = [f"key-{number}" for number in range(150)]

    async def insist(key: str) -> httpx.Response:
        await hang_up(client, key, random.uniform(0.0, 0.012))
        return await post(client, key)

    async with gateway_on(ledger_database) as client, connected(ledger_database) as watch:
        answers: list[httpx.Response] = []
        for start in range(0, len(keys), 10):
            answers += await asyncio.gather(*map(insist, keys[start : start + 10]))

        assert {answer.status_code for answer in answers} == {201}
        ids = await watch.fetch("SELECT id::text FROM tasks")
        assert sorted(ids) == sorted((answer.json()["id"],) for answer in answers)
        assert await watch.fetch(WRITTEN) == [(len(keys),) * 4]
    replayed = [answer for answer in answers if "idempotency-replayed" in answer.headers]
    assert replayed, "nobody hung up after the task was written"


async def test_one_key_at_two_gateways_at_once_is_one_task(ledger_database: Address) -> None:
    keys = [f"key-{number}" for number in range(5)]
    async with (
        gateway_on(ledger_database) as one,
        gateway_on(ledger_database) as other,
        connected(ledger_database) as watch,
    ):
        for key in keys:
            answers = await asyncio.gather(*(post(gateway, key) for gateway in [one, other] * 25))
            assert {answer.status_code for answer in answers} == {201}
            assert len({answer.json()["id"] for answer in answers}) == 1
            first = [answer for answer in answers if "idempotency-replayed" not in answer.headers]
            assert len(first) == 1
        assert await watch.fetch(WRITTEN) == [(len(keys),) * 4]


async def test_a_key_that_another_transaction_is_writing_is_busy_for_three_seconds(
    postgres: servers.Database,
) -> None:
    address = await migrated(postgres)
    holder = await postgres.connect()
    async with gateway_on(address) as client:
        await holder.execute("BEGIN")
        await holder.execute("SELECT baton_enqueue('echo', idempotency_key => 'held')")
        async with asyncio.timeout(8.0):
            held, free = await asyncio.gather(post(client, "held"), post(client))
        assert (held.status_code, held.json()["type"]) == (409, "urn:baton:problem:busy")
        assert "retry-after" in held.headers
        assert free.status_code == 201

        await holder.execute("ROLLBACK")
        assert (await post(client, "held")).status_code == 201
    holder.close()


async def test_what_fails_in_its_last_part_has_written_none_of_it(postgres: servers.Database) -> None:
    address = await migrated(postgres)
    async with gateway_on(address) as client, connected(address_of(postgres)) as operator:
        await operator.script("ALTER TABLE outbox ADD CONSTRAINT none CHECK (task_id IS NULL) NOT VALID")
        assert (await post(client, "key")).status_code == 422
        assert await operator.fetch(WRITTEN) == [(0, 0, 0, 0)]
        assert (await post(client, "key")).status_code == 422  # on the same connection, not within a dead one

        await operator.script("ALTER TABLE outbox DROP CONSTRAINT none")
        answer = await post(client, "key")
        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, None)
        assert await operator.fetch(WRITTEN) == [(1, 1, 1, 1)]
