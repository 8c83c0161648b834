"""Query parameters: strictly read, and every fault told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.gateway import TASKS, Gateway, faults, gateway, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
V1 = "/api/v1"


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Gateway]:
    async with gateway() as opened:
        yield opened


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=new", "status"),
        ("status=0", "status"),
        ("priority=URGENT", "priority"),
        ("kind=", "kind"),
        ("kind=%00", "kind"),
        (f"tag={'t' * 201}", "tag"),
        ("created_from=2030-01-01", "created_from"),
        ("created_from=2030-01-01T00:00:00", "created_from"),
        ("created_from=1900000000", "created_from"),
        ("created_to=2030-01-01T00:00:00+02:00", "created_to"),
        ("created_to=0001-01-01T00:00:00%2B14:00", "created_to"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=05", "limit"),
        ("limit=5.0", "limit"),
        ("limit=1_0", "limit"),
        ("limit=%D9%A5", "limit"),
        ("limit=", "limit"),
        ("limit=99999999999999999999999999", "limit"),
        ("cursor=5", "cursor"),
        ("cursor=" + ID.replace("-", ""), "cursor"),
        ("colour=red", "colour"),
        ("Limit=5", "Limit"),
        ("limit=5&limit=5", "limit"),
        ("=5", ""),
    ],
)
async def test_what_is_not_understood_is_named_with_what_is_allowed(
    api: Gateway, query: str, field: str
) -> None:
    response = await api.client.get(f"{TASKS}?{query}")

    assert problem(response) == (422, "invalid")
    assert list(faults(response)) == [field]
    assert response.json()["errors"][0]["allowed"]


async def test_all_faults_are_told_at_once(api: Gateway) -> None:
    response = await api.client.get(f"{TASKS}?limit=0&status=x&colour=red")

    assert list(faults(response)) == ["limit", "status", "colour"]


async def test_an_unknown_parameter_is_told_the_known_ones(api: Gateway) -> None:
    response = await api.client.get(f"{V1}/outbox?kind=x")

    assert response.json()["errors"][0]["allowed"] == ["status", "limit", "cursor"]


@pytest.mark.parametrize("wait", ["-1", "61", "60.1", "x", "", "1e2", "inf", "nan", "1.", ".5", " 1"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", f"{TASKS}/{ID}"), ("GET", f"{TASKS}/{ID}/status"), ("POST", TASKS)]
)
async def test_a_wait_is_a_decimal_up_to_60(api: Gateway, method: str, path: str, wait: str) -> None:
    response = await api.client.request(method, path, params={"wait": wait}, json={"kind": "echo"})

    assert problem(response) == (422, "invalid")
    assert list(faults(response)) == ["wait"]


@pytest.mark.parametrize("wait", ["0", "0.0000000000000001", "1e-05", "0E0"])
async def test_a_wait_may_be_written_as_any_language_writes_it(api: Gateway, wait: str) -> None:
    response = await api.client.post(TASKS, params={"wait": wait}, json={"kind": "echo"})

    assert response.status_code == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", TASKS),
        ("GET", f"{TASKS}/{ID}"),
        ("GET", f"{TASKS}/{ID}/status"),
        ("DELETE", f"{TASKS}/{ID}"),
        ("POST", f"{TASKS}/{ID}/replay"),
        ("GET", f"{V1}/dead-letters"),
        ("GET", f"{V1}/dead-letters/1"),
        ("GET", f"{V1}/outbox"),
        ("POST", f"{V1}/outbox/1/retry"),
        ("GET", f"{V1}/kinds"),
    ],
)
async def test_no_call_ignores_a_parameter_it_does_not_know(api: Gateway, method: str, path: str) -> None:
    response = await api.client.request(method, f"{path}?colour=red", json={"reason": "x"})

    assert problem(response) == (422, "invalid")
    assert list(faults(response)) == ["colour"]


@pytest.mark.parametrize("query", [b"kind=%ff", b"kind=\xc3\xa9", b"%ff=1"])
async def test_what_is_not_utf_8_is_refused(api: Gateway, query: bytes) -> None:
    assert problem(await api.send(method="GET", query=query)) == (400, "bad-request")


async def test_a_query_too_long_is_refused(api: Gateway) -> None:
    longest = await api.send(method="GET", query=b"kind=" + b"k" * 4091)
    longer = await api.send(method="GET", query=b"kind=" + b"k" * 4092)

    assert problem(longest) == (422, "invalid")
    assert problem(longer) == (414, "query-too-long")


async def test_escapes_and_other_offsets_are_read(api: Gateway) -> None:
    await api.submit(tags=["a b&c"])

    found = await api.client.get(
        TASKS,
        params={
            "tag": "a b&c",
            "created_from": "2020-01-01T00:00:00.5+05:30",
            "created_to": "9998-01-01T00:00:00Z",
        },
    )

    assert len(found.json()["items"]) == 1
