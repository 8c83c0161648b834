"""The calls of operators: dead letters, outbox, kinds and probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest
import pytest_asyncio

from gateway.health import HealthRoutes
from pipeline.handlers import Handlers, handler
from storage.errors import SchemaMismatch, Unavailable
from storage.model import Reference
from tests.support.gateway import Broken, Gateway, Hands, gateway, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

V1 = "/api/v1"


class Order(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=1)]


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Gateway]:
    async with gateway() as opened:
        yield opened


class TestDeadLetters:
    async def test_lists_newest_first_and_filters(self, api: Gateway) -> None:
        tasks = [await api.submit(), await api.submit(kind="sleep", payload={"seconds": 1})]
        for task in tasks:
            await api.fail(task)

        async def found(query: str) -> list[str]:
            response = await api.client.get(f"{V1}/dead-letters{query}")
            assert response.status_code == 200, response.text
            return [each["task_id"] for each in response.json()["items"]]

        assert await found("") == [tasks[1]["id"], tasks[0]["id"]]
        assert await found("?kind=sleep") == [tasks[1]["id"]]
        assert await found(f"?task_id={tasks[0]['id']}") == [tasks[0]["id"]]

    async def test_pages_by_cursor(self, api: Gateway) -> None:
        for _ in range(3):
            await api.fail(await api.submit())

        first = (await api.client.get(f"{V1}/dead-letters?limit=2")).json()
        second = (await api.client.get(f"{V1}/dead-letters?limit=2&cursor={first['next']}")).json()

        assert [each["id"] for each in first["items"] + second["items"]] == [3, 2, 1]
        assert second["next"] is None

    async def test_shows_one_with_its_errors(self, api: Gateway) -> None:
        task = await api.submit()
        await api.give_up(task)
        listed = (await api.client.get(f"{V1}/dead-letters")).json()["items"][0]

        shown = (await api.client.get(f"{V1}/dead-letters/{listed['id']}")).json()

        assert shown == listed
        assert shown["reason"] == "undeliverable"
        assert shown["errors"][0]["message"] == "NO_ROUTE"
        assert shown["errors"][0]["at"].endswith("Z")
        assert shown["created_at"].endswith("Z")
        assert "body" not in shown
        assert "tenant" not in shown

    async def test_shows_the_bytes_and_headers_of_what_nobody_could_read(self, api: Gateway) -> None:
        await api.ledger.dead_letters.bury_undecodable(b"\xff\x00", {"x-death": 1}, "not JSON")

        shown = (await api.client.get(f"{V1}/dead-letters/1")).json()
        listed = (await api.client.get(f"{V1}/dead-letters")).json()["items"][0]

        assert shown["body"] == "/wA="
        assert shown["headers"] == {"x-death": 1}
        assert shown["task_id"] is None
        assert "body" not in listed

    async def test_an_unknown_one_is_not_found(self, api: Gateway) -> None:
        assert problem(await api.client.get(f"{V1}/dead-letters/9")) == (404, "not-found")

    @pytest.mark.parametrize("which", ["0", "-1", "x", "01", "9223372036854775807", "1.0"])
    async def test_an_id_of_another_form_is_refused(self, api: Gateway, which: str) -> None:
        assert problem(await api.client.get(f"{V1}/dead-letters/{which}")) == (422, "invalid")


class TestOutbox:
    async def test_lists_rows_newest_first_and_by_status(self, api: Gateway) -> None:
        waiting = await api.submit(priority="HIGH")
        failed = await api.submit()
        row_id = await api.give_up(failed)

        everything = (await api.client.get(f"{V1}/outbox")).json()
        only_failed = (await api.client.get(f"{V1}/outbox?status=FAILED")).json()
        only_waiting = (await api.client.get(f"{V1}/outbox?status=WAITING")).json()["items"]

        ids = [row["id"] for row in everything["items"]]
        assert ids == sorted(ids, reverse=True)
        assert [row["id"] for row in only_failed["items"]] == [row_id]
        assert only_failed["items"][0]["error"] == "NO_ROUTE"
        assert row_id not in [row["id"] for row in only_waiting]
        [shown] = [row for row in only_waiting if row["task_id"] == waiting["id"]]
        assert (shown["priority"], shown["route"], shown["dispatch"]) == ("HIGH", "tasks.high", 1)

    async def test_a_failed_row_is_sent_again_and_its_task_with_it(self, api: Gateway) -> None:
        task = await api.submit()
        row_id = await api.give_up(task)

        response = await api.client.post(f"{V1}/outbox/{row_id}/retry")
        shown = (await api.client.get(f"{V1}/tasks/{task['id']}")).json()

        assert response.status_code == 200
        assert (response.json()["status"], response.json()["attempts"]) == ("WAITING", 0)
        assert (shown["status"], shown["dispatch"]) == ("NEW", 2)

    async def test_a_waiting_row_is_not_retried(self, api: Gateway) -> None:
        await api.submit()
        await api.submit()

        response = await api.client.post(f"{V1}/outbox/1/retry")

        assert problem(response) == (409, "conflict")
        assert "WAITING" in response.json()["detail"]

    async def test_an_unknown_row_is_not_found(self, api: Gateway) -> None:
        await api.submit()

        for which in (2, 9223372036854775806):
            assert problem(await api.client.post(f"{V1}/outbox/{which}/retry")) == (404, "not-found")


class TestKinds:
    async def test_lists_policies_and_schemas(self) -> None:
        @handler("order.ship", timeout_seconds=5, max_retries=0, version=2, cpu=True)
        def ship(order: Order) -> None:
            """Ship an order."""

        async with gateway(handlers=Handlers([ship]), max_retries=4, task_timeout_seconds=9.0) as api:
            [kind] = (await api.client.get(f"{V1}/kinds")).json()["items"]

        schema = kind.pop("payload_schema")
        assert kind == {
            "kind": "order.ship",
            "version": 2,
            "description": "Ship an order.",
            "mode": "process",
            "timeout_seconds": 5.0,
            "max_retries": 0,
        }
        assert schema["$defs"]["Order"]["properties"]["number"] == {"type": "integer", "minimum": 1}

    async def test_shows_what_the_settings_give_where_a_kind_names_nothing(self) -> None:
        async with gateway(max_retries=4, task_timeout_seconds=9.0) as api:
            kinds = {kind["kind"]: kind for kind in (await api.client.get(f"{V1}/kinds")).json()["items"]}

        assert (kinds["echo"]["timeout_seconds"], kinds["echo"]["max_retries"]) == (9.0, 4)


class TestHealth:
    async def test_a_process_that_answers_is_live(self) -> None:
        async with gateway(Hands(tasks=Broken())) as api:
            assert (await api.client.get("/health/live")).json() == {"status": "live"}

    async def test_it_is_ready_when_the_ledger_is(self, api: Gateway) -> None:
        response = await api.client.get("/health/ready")

        assert (response.status_code, response.json()) == (200, {"status": "ready"})

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (Unavailable("postgres://secret@db refused"), (503, "unavailable")),
            (SchemaMismatch("the schema is at 3, this code needs 4"), (503, "schema-mismatch")),
            (None, (503, "late")),
        ],
    )
    async def test_otherwise_it_says_what_is_wrong_and_no_more(
        self, error: Exception | None, expected: tuple[int, str]
    ) -> None:
        async with gateway(Hands(ready=Broken(error).ready), request_timeout_seconds=0.05) as api:
            response = await api.client.get("/health/ready")
            live = await api.client.get("/health/live")

        assert problem(response) == expected
        assert live.status_code == 200
        assert "secret" not in response.text

    def test_readiness_waits_less_than_a_probe_does(self) -> None:
        assert HealthRoutes(Hands(), 600.0)._deadline.seconds == 2.0


async def test_dead_letters_of_claimed_tasks_stay_when_replayed(api: Gateway) -> None:
    task = await api.submit()
    await api.fail(task)
    await api.client.post(f"{V1}/tasks/{task['id']}/replay", json={"reason": "fixed"})

    letters: list[dict[str, Any]] = (await api.client.get(f"{V1}/dead-letters")).json()["items"]

    assert [(each["task_id"], each["dispatch"]) for each in letters] == [Reference(task["id"], 1)]
