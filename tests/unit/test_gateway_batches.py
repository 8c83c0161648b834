"""POST /tasks/batch: many tasks by one request, all or none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import pytest_asyncio

from gateway.bodies import MOST_BATCH_BYTES, MOST_BYTES
from storage.errors import LockTimeout, Refused
from storage.model import Caller, TaskFilter
from tests.support.gateway import HOST, JSON, TASKS, Broken, Gateway, Hands, faults, gateway, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

BATCH = f"{TASKS}/batch"
GOOD = {"kind": "echo"}


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Gateway]:
    async with gateway() as opened:
        yield opened


async def post(api: Gateway, *tasks: object, key: str | None = None) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    return await api.client.post(BATCH, json={"tasks": tasks}, headers=headers)


async def kept(api: Gateway) -> list[str]:
    return [task.name for task in (await api.ledger.tasks.find(Caller(), TaskFilter(limit=2000))).tasks]


async def test_each_task_is_answered_as_post_tasks_would_in_order(api: Gateway) -> None:
    response = await post(
        api,
        {"kind": "echo", "name": "a", "payload": [1.0], "priority": "HIGH", "delay_seconds": 1.5},
        {"kind": "sleep", "name": "b", "payload": {"seconds": 1}, "tags": ["x"], "max_retries": 0},
        {"kind": "echo", "name": "c"},
    )

    assert response.status_code == 201
    items = response.json()["items"]
    assert list(response.json()) == ["items"]
    assert [item["name"] for item in items] == ["a", "b", "c"]
    assert items == [(await api.client.get(f"{TASKS}/{item['id']}")).json() for item in items]
    assert b'"payload":[1.0]' in response.content
    assert [item["id"] for item in items] == sorted(item["id"] for item in items)


async def test_a_thousand_tasks_are_taken_and_one_more_is_not(api: Gateway) -> None:
    most = await post(api, *[GOOD] * 1000)
    more = await post(api, *[GOOD] * 1001)

    assert most.status_code == 201
    assert problem(more) == (422, "invalid")
    assert list(faults(more)) == ["tasks"]
    assert len(await kept(api)) == 1000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "tasks"),
        ({"tasks": []}, "tasks"),
        ({"tasks": GOOD}, "tasks"),
        ({"tasks": [GOOD], "wait": 1}, "wait"),
        ([GOOD], "body"),
    ],
)
async def test_what_is_no_batch_is_refused(api: Gateway, body: Any, field: str) -> None:
    response = await api.client.post(BATCH, json=body)

    assert problem(response) == (422, "invalid")
    assert list(faults(response)) == [field]
    assert response.json()["errors"][0]["allowed"]


async def test_every_bad_task_is_named_and_none_is_taken(api: Gateway) -> None:
    deep: Any = []
    for _ in range(64):
        deep = [deep]
    response = await post(
        api,
        GOOD,
        {"kind": "nope"},
        {"kind": "sleep", "payload": {"seconds": -1}},
        {"kind": "echo", "name": 5},
        {"kind": "echo", "colour": "red"},
        {"kind": "echo", "tags": ["a", ""]},
        {"kind": "echo", "payload": [2**63, "\0"]},
        7,
        {"kind": "echo", "payload": deep},
        {"kind": "echo", "name": "x" * MOST_BYTES},
        {"kind": "echo", "delay_seconds": 1, "run_at": "2030-01-01T00:00:00Z"},
    )

    assert problem(response) == (422, "invalid")
    assert [each["field"] for each in response.json()["errors"]] == [
        "tasks[1].kind",
        "tasks[2].payload.seconds",
        "tasks[3].name",
        "tasks[4].colour",
        "tasks[5].tags[1]",
        "tasks[6].payload[0]",
        "tasks[6].payload[1]",
        "tasks[7]",
        "tasks[8]",
        "tasks[9]",
        "tasks[10].delay_seconds",
    ]
    assert response.json()["detail"] == "none of 11 tasks was taken; faults: 11"
    assert await kept(api) == []


async def test_the_faults_that_are_named_are_bounded(api: Gateway) -> None:
    two = {"kind": "echo", "payload": ["\0", "\0"]}
    response = await post(api, *[{"kind": "nope"}] * 99, *[two] * 50)

    assert len(response.json()["errors"]) == 100
    assert response.json()["detail"].endswith("faults: the first 100")


async def test_a_payload_may_be_nested_as_deeply_as_alone(api: Gateway) -> None:
    deep: Any = []
    for _ in range(62):
        deep = [deep]

    assert (await api.client.post(TASKS, json={"kind": "echo", "payload": deep})).status_code == 201
    assert (await post(api, {"kind": "echo", "payload": deep})).status_code == 201


async def test_endless_nesting_is_refused(api: Gateway) -> None:
    assert problem(await api.send(b'{"tasks":' + b"[" * 100_000, path=BATCH)) == (400, "too-deep")


@pytest.mark.parametrize("body", [b'{"tasks":[{"kind":"echo"}', b'{"tasks":[{"kind":"\xff"}]}', b""])
async def test_a_body_that_is_no_json_is_refused(api: Gateway, body: bytes) -> None:
    assert problem(await api.send(body, path=BATCH)) == (400, "malformed-json")


async def test_a_batch_may_be_larger_than_a_task_but_not_endless(api: Gateway) -> None:
    task = {"kind": "echo", "payload": "x" * (MOST_BYTES - 100)}

    taken = await post(api, *[task] * 15)
    refused = await post(api, *[task] * 17)

    assert taken.status_code == 201
    assert problem(refused) == (413, "body-too-large")
    assert str(MOST_BATCH_BYTES) in refused.json()["detail"]


async def test_others_are_served_while_a_large_batch_is_read(api: Gateway) -> None:
    order: list[str] = []

    async def submit(name: str, response: Any) -> None:
        assert (await response).status_code == 201
        order.append(name)

    large = post(api, *[{"kind": "echo", "payload": "x" * 200_000}] * 15)
    await asyncio.gather(
        submit("large", large), submit("small", api.client.post(TASKS, json={"kind": "echo"}))
    )

    assert order == ["small", "large"]


async def test_no_parameter_is_known(api: Gateway) -> None:
    response = await api.client.post(f"{BATCH}?wait=1", json={"tasks": [GOOD]})

    assert list(faults(response)) == ["wait"]


class TestIdempotency:
    async def test_a_repeat_is_answered_with_the_first_tasks_as_they_now_are(self, api: Gateway) -> None:
        tasks = [{"kind": "echo", "name": name, "payload": [name]} for name in "abc"]
        first = await post(api, *tasks, key="k")
        await api.complete(first.json()["items"][1], '"done"')

        second = await post(api, *tasks, key="k")

        assert second.status_code == 201
        assert second.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        chosen = ("id", "name", "payload", "created_at")
        assert [[item[name] for name in chosen] for item in second.json()["items"]] == [
            [item[name] for name in chosen] for item in first.json()["items"]
        ]
        assert [item["status"] for item in second.json()["items"]] == ["NEW", "COMPLETED", "NEW"]
        assert len(await kept(api)) == 3

    async def test_another_body_is_refused(self, api: Gateway) -> None:
        first = await post(api, GOOD, GOOD, key="k")

        second = await post(api, GOOD, GOOD, GOOD, key="k")

        assert problem(second) == (422, "key-reused")
        assert first.json()["items"][0]["id"] in second.json()["detail"]

    async def test_a_key_serves_a_task_or_a_batch(self, api: Gateway) -> None:
        headers = {"idempotency-key": "one"}
        await api.client.post(TASKS, json=GOOD, headers=headers)
        await post(api, GOOD, key="many")

        assert problem(await post(api, GOOD, key="one")) == (422, "key-reused")
        single = await api.client.post(TASKS, json=GOOD, headers={"idempotency-key": "many"})
        assert problem(single) == (422, "key-reused")

    async def test_first_tasks_pruned_since_are_gone(self, api: Gateway) -> None:
        first = await post(api, GOOD, GOOD, key="k")
        del api.ledger._state.tasks[UUID(first.json()["items"][1]["id"])]

        again = await post(api, GOOD, GOOD, key="k")

        assert problem(again) == (410, "gone")
        assert first.json()["items"][1]["id"] in again.json()["detail"]

    async def test_a_key_of_other_characters_is_refused(self, api: Gateway) -> None:
        answer = await api.send(
            b'{"tasks":[{"kind":"echo"}]}', path=BATCH, headers=[HOST, JSON, (b"idempotency-key", b"a b")]
        )

        assert list(faults(answer)) == ["Idempotency-Key"]


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LockTimeout("canceling statement due to lock timeout"), (409, "busy")),
        (Refused("invalid byte sequence for encoding"), (422, "not-storable")),
    ],
)
async def test_failures_of_the_ledger_are_answered_as_for_one_task(
    error: Exception, expected: tuple[int, str], key: str | None
) -> None:
    async with gateway(Hands(submissions=Broken(error))) as api:
        assert problem(await post(api, GOOD, GOOD, key=key)) == expected
