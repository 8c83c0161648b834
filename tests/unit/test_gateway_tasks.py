"""The calls on tasks: each row of the API's table, and each refusal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from msgspec.structs import replace

from pipeline.handlers import Context, Handlers, handler
from storage.model import Caller, Priority
from tests.support import builders
from tests.support.gateway import HOST, JSON, TASKS, Gateway, faults, gateway, problem
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UNKNOWN = f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057"


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Gateway]:
    async with gateway() as opened:
        yield opened


class TestSubmit:
    async def test_answers_201_with_location_and_the_task_as_get_shows_it(self, api: Gateway) -> None:
        response = await api.client.post(
            TASKS,
            json={
                "kind": "echo",
                "payload": {"n": 1},
                "name": "first",
                "description": "of all",
                "tags": ["a", "b"],
                "priority": "HIGH",
                "delay_seconds": 1.5,
                "timeout_seconds": 2.5,
                "max_retries": 0,
            },
        )
        shown = await api.client.get(response.headers["location"])

        assert response.status_code == 201
        assert response.content == shown.content
        task = response.json()
        assert task["status"] == "NEW"
        assert task["priority"] == "HIGH"
        assert task["tags"] == ["a", "b"]
        assert (task["timeout_seconds"], task["max_retries"]) == (2.5, 0)
        assert task["payload"] == {"n": 1}
        assert "result" not in task
        assert "tenant" not in task
        assert task["created_at"].endswith("Z")
        assert _time(task["due_at"]) - _time(task["created_at"]) == timedelta(seconds=1.5)

    async def test_ids_are_of_version_7_and_rise(self, api: Gateway) -> None:
        ids = [UUID((await api.submit())["id"]) for _ in range(20)]

        assert {each.version for each in ids} == {7}
        assert ids == sorted(ids)

    async def test_keeps_the_bytes_of_the_payload(self, api: Gateway) -> None:
        written = rb'{ "b":1.0,"a" : [1e2, "\u00e9\u0041"],"b":2 }'

        answer = await api.send(rb'{"kind":"echo","payload":' + written + b"}")

        assert answer.status == 201
        task = await api.ledger.tasks.get(Caller(), UUID(answer.json()["id"]))
        assert task is not None
        assert task.payload == written

    async def test_a_payload_left_out_is_an_empty_object(self, api: Gateway) -> None:
        assert (await api.submit())["payload"] == {}

    async def test_what_is_left_out_comes_from_the_kind_or_else_from_the_settings(self) -> None:
        @handler("own", timeout_seconds=7, max_retries=1, version=3)
        async def own(payload: Any) -> Any:
            return payload

        @handler("plain")
        async def plain(payload: Any) -> Any:
            return payload

        async with gateway(handlers=Handlers([own, plain]), max_retries=9, task_timeout_seconds=11.0) as api:
            by_kind = await api.submit(kind="own")
            by_settings = await api.submit(kind="plain")
            by_client = await api.submit(kind="own", max_retries=0, timeout_seconds=1)

        chosen = ("timeout_seconds", "max_retries", "kind_version")
        assert [by_kind[name] for name in chosen] == [7.0, 1, 3]
        assert [by_settings[name] for name in chosen] == [11.0, 9, 1]
        assert [by_client[name] for name in chosen] == [1.0, 0, 3]

    async def test_run_at_is_kept_in_utc(self, api: Gateway) -> None:
        task = await api.submit(run_at="2030-01-31T12:00:00+02:00")

        assert task["due_at"] == "2030-01-31T10:00:00Z"

    async def test_every_unknown_field_is_named_beside_the_first_fault(self, api: Gateway) -> None:
        response = await api.client.post(TASKS, json={"kind": 7, "colour": "red", "x": 1})

        assert problem(response) == (422, "invalid")
        assert [each["field"] for each in response.json()["errors"]] == ["kind", "colour", "x"]

        response = await api.client.post(TASKS, json={"colour": "red", "kind": "echo", "x": 1})

        assert [each["field"] for each in response.json()["errors"]] == ["colour", "x"]
        assert all("priority" in each["allowed"] for each in response.json()["errors"])

    async def test_an_unknown_kind_is_refused_with_the_known_ones(self, api: Gateway) -> None:
        response = await api.client.post(TASKS, json={"kind": "nope"})

        assert problem(response) == (422, "unknown-kind")
        assert response.json()["errors"][0]["allowed"] == ["echo", "fail", "http.request", "sleep"]

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "kind"),
            ({"kind": 5}, "kind"),
            ({"kind": "k" * 101}, "kind"),
            ({"kind": "echo", "colour": "red"}, "colour"),
            ({"kind": "echo", "name": "n" * 201}, "name"),
            ({"kind": "echo", "description": "d" * 4001}, "description"),
            ({"kind": "echo", "priority": "URGENT"}, "priority"),
            ({"kind": "echo", "priority": 1}, "priority"),
            ({"kind": "echo", "tags": ["a", ""]}, "tags[1]"),
            ({"kind": "echo", "tags": ["t"] * 21}, "tags"),
            ({"kind": "echo", "max_retries": 101}, "max_retries"),
            ({"kind": "echo", "max_retries": "5"}, "max_retries"),
            ({"kind": "echo", "max_retries": 5.0}, "max_retries"),
            ({"kind": "echo", "max_retries": True}, "max_retries"),
            ({"kind": "echo", "timeout_seconds": 0}, "timeout_seconds"),
            ({"kind": "echo", "timeout_seconds": 86_401}, "timeout_seconds"),
            ({"kind": "echo", "delay_seconds": -1}, "delay_seconds"),
            ({"kind": "echo", "delay_seconds": 31_536_001}, "delay_seconds"),
            ({"kind": "echo", "delay_seconds": 1, "run_at": "2030-01-01T00:00:00Z"}, "delay_seconds"),
            ({"kind": "echo", "run_at": "2030-01-01T00:00:00"}, "run_at"),
            ({"kind": "echo", "run_at": "tomorrow"}, "run_at"),
            ({"kind": "echo", "run_at": 1_900_000_000}, "run_at"),
            ({"kind": "echo", "run_at": "0001-01-01T00:00:00+14:00"}, "run_at"),
            ({"kind": "echo", "run_at": "9999-12-31T23:59:59-14:00"}, "run_at"),
        ],
    )
    async def test_a_field_that_does_not_fit_is_named_with_what_is_allowed(
        self, api: Gateway, body: dict[str, Any], field: str
    ) -> None:
        response = await api.client.post(TASKS, json=body)

        assert problem(response) == (422, "invalid")
        assert [each["field"] for each in response.json()["errors"]] == [field]
        assert response.json()["errors"][0]["allowed"]

    @pytest.mark.parametrize(
        ("payload", "field"),
        [
            ({"seconds": "1"}, "payload.seconds"),
            ({"seconds": -1}, "payload.seconds"),
            ({"seconds": 1, "minutes": 1}, "payload.minutes"),
            ({}, "payload.seconds"),
            ([], "payload"),
        ],
    )
    async def test_a_payload_that_does_not_fit_its_kind_is_refused(
        self, api: Gateway, payload: object, field: str
    ) -> None:
        response = await api.client.post(TASKS, json={"kind": "sleep", "payload": payload})

        assert problem(response) == (422, "invalid")
        assert list(faults(response)) == [field]

    async def test_a_body_that_is_no_object_is_refused(self, api: Gateway) -> None:
        response = await api.client.post(TASKS, json=[])

        assert problem(response) == (422, "invalid")
        assert list(faults(response)) == ["body"]

    async def test_nothing_is_written_for_a_refused_request(self, api: Gateway) -> None:
        await api.client.post(TASKS, json={"kind": "sleep", "payload": {"seconds": -1}})

        assert (await api.client.get(TASKS)).json() == {"items": [], "next": None}


class TestTrace:
    TRACE = "-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    @pytest.mark.parametrize("given", [f"00{TRACE}", f"01{TRACE}", f"cc{TRACE}-what-comes"])
    async def test_a_task_belongs_to_the_trace_of_its_request(self, api: Gateway, given: str) -> None:
        response = await api.client.post(TASKS, json={"kind": "echo"}, headers={"traceparent": given})

        run = await api.start(response.json())
        assert Context.of(run).trace_context == f"00{self.TRACE}"

    @pytest.mark.parametrize(
        "given",
        [
            "",
            "x",
            f"00{TRACE}-more",
            f"00{TRACE}0",
            f"ff{TRACE}",
            f"01{TRACE}x",
            f"00{TRACE}".upper(),
            f"00-{'0' * 32}-00f067aa0ba902b7-01",
            f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        ],
    )
    async def test_what_is_no_trace_is_not_there(self, api: Gateway, given: str) -> None:
        response = await api.client.post(TASKS, json={"kind": "echo"}, headers={"traceparent": given})

        assert response.status_code == 201
        assert (await api.start(response.json())).trace_context is None

    async def test_a_batch_belongs_to_the_trace_of_its_request(self, api: Gateway) -> None:
        response = await api.client.post(
            f"{TASKS}/batch",
            json={"tasks": [{"kind": "echo"}, {"kind": "echo"}]},
            headers={"traceparent": f"00{self.TRACE}"},
        )

        runs = [await api.start(task) for task in response.json()["items"]]
        assert [run.trace_context for run in runs] == [f"00{self.TRACE}"] * 2

    async def test_two_traces_are_none(self, api: Gateway) -> None:
        header = (b"traceparent", f"00{self.TRACE}".encode())
        answer = await api.send(b'{"kind": "echo"}', headers=[HOST, JSON, header, header])

        assert answer.status == 201
        assert (await api.start(answer.json())).trace_context is None


class TestIdempotency:
    async def test_the_same_request_is_answered_with_the_first_task(self, api: Gateway) -> None:
        headers = {"idempotency-key": "order-17"}
        first = await api.client.post(TASKS, json={"kind": "echo"}, headers=headers)
        await api.complete(first.json(), '"done"')

        second = await api.client.post(TASKS, json={"kind": "echo"}, headers=headers)

        assert second.status_code == 201
        assert second.headers["location"] == first.headers["location"]
        assert second.headers["idempotency-replayed"] == "true"
        assert second.json()["result"] == "done"
        assert "idempotency-replayed" not in first.headers
        assert len((await api.client.get(TASKS)).json()["items"]) == 1

    async def test_the_same_key_with_another_body_is_refused(self, api: Gateway) -> None:
        headers = {"idempotency-key": "order-17"}
        first = await api.client.post(TASKS, json={"kind": "echo"}, headers=headers)

        second = await api.client.post(TASKS, json={"kind": "echo", "name": "x"}, headers=headers)

        assert problem(second) == (422, "key-reused")
        assert first.json()["id"] in second.json()["errors"][0]["message"]
        assert list(faults(second)) == ["Idempotency-Key"]
        assert first.json()["id"] in second.json()["detail"]

    async def test_many_at_once_make_one_task(self, api: Gateway) -> None:
        answers = await asyncio.gather(
            *(
                api.client.post(TASKS, json={"kind": "echo"}, headers={"idempotency-key": "k"})
                for _ in range(50)
            )
        )

        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["id"] for answer in answers}) == 1

    async def test_a_repeat_may_wait_for_the_first_task_to_end(self, api: Gateway) -> None:
        headers = {"idempotency-key": "k"}
        first = await api.client.post(TASKS, json={"kind": "echo"}, headers=headers)

        async with asyncio.TaskGroup() as group:
            second = group.create_task(
                api.client.post(f"{TASKS}?wait=60", json={"kind": "echo"}, headers=headers)
            )
            await eventually(lambda: len(api.waiting) == 1)
            await api.complete(first.json())

        assert second.result().json()["status"] == "COMPLETED"
        assert second.result().headers["idempotency-replayed"] == "true"

    async def test_a_first_task_pruned_since_is_gone(self, api: Gateway) -> None:
        headers = {"idempotency-key": "k"}
        first = await api.client.post(TASKS, json={"kind": "echo"}, headers=headers)
        del api.ledger._state.tasks[UUID(first.json()["id"])]

        for path in (TASKS, f"{TASKS}?wait=1"):
            again = await api.client.post(path, json={"kind": "echo"}, headers=headers)
            assert problem(again) == (410, "gone")

    @pytest.mark.parametrize("key", [b"", b"k" * 201, b"a b", b"k\xc3\xa9", b"a\tb"])
    async def test_a_key_of_other_characters_is_refused(self, api: Gateway, key: bytes) -> None:
        answer = await api.send(b'{"kind":"echo"}', headers=[HOST, JSON, (b"idempotency-key", key)])

        assert problem(answer) == (422, "invalid")
        assert list(faults(answer)) == ["Idempotency-Key"]

    async def test_two_keys_are_refused(self, api: Gateway) -> None:
        key = (b"idempotency-key", b"k")

        assert problem(await api.send(b'{"kind":"echo"}', headers=[HOST, JSON, key, key])) == (
            400,
            "bad-request",
        )


class TestFind:
    async def test_lists_newest_first_without_payloads(self, api: Gateway) -> None:
        tasks = [await api.submit() for _ in range(3)]

        body = (await api.client.get(TASKS)).json()

        assert [each["id"] for each in body["items"]] == [each["id"] for each in reversed(tasks)]
        assert body["next"] is None
        assert all("payload" not in each for each in body["items"])

    async def test_pages_meet_without_gap_or_overlap(self, api: Gateway) -> None:
        tasks = [(await api.submit())["id"] for _ in range(5)]
        seen: list[str] = []
        query = "limit=2"
        while query:
            page = (await api.client.get(f"{TASKS}?{query}")).json()
            assert len(page["items"]) <= 2
            seen += [each["id"] for each in page["items"]]
            query = f"limit=2&cursor={page['next']}" if page["next"] else ""

        assert seen == tasks[::-1]

    async def test_a_page_that_ends_exactly_is_the_last(self, api: Gateway) -> None:
        for _ in range(2):
            await api.submit()

        assert (await api.client.get(f"{TASKS}?limit=2")).json()["next"] is None

    async def test_a_page_may_be_empty_and_the_list_go_on(self, api: Gateway) -> None:
        high = await api.submit(priority="HIGH")
        low = builders.submission(priority=Priority.LOW)
        others = [replace(low, id=builders.task_id()) for _ in range(10_000)]
        await api.ledger.submissions.submit(others)

        first = (await api.client.get(f"{TASKS}?priority=HIGH")).json()
        second = (await api.client.get(f"{TASKS}?priority=HIGH&cursor={first['next']}")).json()

        assert (first["items"], first["next"]) == ([], str(others[0].id))
        assert ([each["id"] for each in second["items"]], second["next"]) == ([high["id"]], None)

    async def test_filters(self, api: Gateway) -> None:
        high = await api.submit(priority="HIGH", tags=["x"])
        low = await api.submit(priority="LOW", kind="sleep", payload={"seconds": 1})
        await api.complete(low)

        async def found(query: str) -> list[str]:
            response = await api.client.get(f"{TASKS}?{query}")
            assert response.status_code == 200, response.text
            return [each["id"] for each in response.json()["items"]]

        assert await found("priority=HIGH") == [high["id"]]
        assert await found("status=COMPLETED") == [low["id"]]
        assert await found("kind=sleep") == [low["id"]]
        assert await found("tag=x") == [high["id"]]
        assert await found("tag=y") == []
        assert await found("kind=echo&status=NEW&limit=1") == [high["id"]]

    async def test_filters_by_creation_from_and_before(self, api: Gateway) -> None:
        await api.submit()
        await api.ledger.clock.advance(60)
        late = await api.submit()
        middle = (_time(late["created_at"]) - timedelta(seconds=1)).isoformat().replace("+", "%2B")

        newer = (await api.client.get(f"{TASKS}?created_from={middle}")).json()["items"]
        older = (await api.client.get(f"{TASKS}?created_to={middle}")).json()["items"]

        assert [each["id"] for each in newer] == [late["id"]]
        assert len(older) == 1


class TestShow:
    async def test_shows_the_result_of_a_completed_task(self, api: Gateway) -> None:
        task = await api.submit(payload=[1])
        await api.complete(task, '{"sum": 1.0}')

        response = await api.client.get(f"{TASKS}/{task['id']}")

        assert b'"result":{"sum": 1.0}' in response.content
        body = response.json()
        assert body["status"] == "COMPLETED"
        assert body["finished_at"].endswith("Z")

    async def test_times_are_utc_whatever_the_ledger_gives(self, api: Gateway) -> None:
        task = await api.submit()
        row = api.ledger._state.tasks[UUID(task["id"])]
        row.created_at = row.created_at.astimezone(timezone(timedelta(hours=5)))

        shown = (await api.client.get(f"{TASKS}/{task['id']}")).json()

        assert shown["created_at"] == task["created_at"]

    async def test_shows_the_errors_of_a_failed_task(self, api: Gateway) -> None:
        task = await api.submit()
        await api.fail(task, "no such customer")

        body = (await api.client.get(f"{TASKS}/{task['id']}")).json()

        assert (body["status"], body["reason"]) == ("FAILED", "error")
        assert "result" not in body

    async def test_shows_only_the_status(self, api: Gateway) -> None:
        task = await api.submit()
        await api.start(task)

        body = (await api.client.get(f"{TASKS}/{task['id']}/status")).json()

        assert body == {"id": task["id"], "status": "IN_PROGRESS"}

    @pytest.mark.parametrize("path", ["", "/status", "?wait=1", "/status?wait=1"])
    async def test_an_unknown_task_is_not_found(self, api: Gateway, path: str) -> None:
        assert problem(await api.client.get(f"{UNKNOWN}{path}")) == (404, "not-found")

    @pytest.mark.parametrize(
        "task_id", ["5", "01890a5dac96774bbcceb302099a8057", "{01890a5d-ac96-774b-bcce-b302099a8057}", "%00"]
    )
    async def test_an_id_of_another_form_is_refused(self, api: Gateway, task_id: str) -> None:
        for path in (f"{TASKS}/{task_id}", f"{TASKS}/{task_id}/status"):
            response = await api.client.get(path)
            assert problem(response) == (422, "invalid")
            assert list(faults(response)) == ["task_id"]

    async def test_the_tasks_of_another_tenant_are_not_found(self, api: Gateway) -> None:
        task = await api.submit()
        row = api.ledger._state.tasks[UUID(task["id"])]
        row.asked = replace(row.asked, tenant="other")

        for path in ("", "/status"):
            assert problem(await api.client.get(f"{TASKS}/{task['id']}{path}")) == (404, "not-found")


class TestCancel:
    async def test_a_waiting_task_is_cancelled_and_stays_so(self, api: Gateway) -> None:
        task = await api.submit()

        first = await api.client.delete(f"{TASKS}/{task['id']}")
        again = await api.client.delete(f"{TASKS}/{task['id']}")

        assert [first.status_code, again.status_code] == [200, 200]
        assert first.json()["status"] == again.json()["status"] == "CANCELLED"

    async def test_a_running_task_is_asked(self, api: Gateway) -> None:
        task = await api.submit()
        await api.start(task)

        response = await api.client.delete(f"{TASKS}/{task['id']}")

        assert response.status_code == 202
        assert (response.json()["status"], response.json()["cancel_requested"]) == ("IN_PROGRESS", True)

    async def test_an_ended_task_is_not_cancelled(self, api: Gateway) -> None:
        completed, failed = await api.submit(), await api.submit()
        await api.complete(completed)
        await api.fail(failed)

        for task in (completed, failed):
            assert problem(await api.client.delete(f"{TASKS}/{task['id']}")) == (409, "conflict")

    async def test_an_unknown_task_is_not_found(self, api: Gateway) -> None:
        assert problem(await api.client.delete(UNKNOWN)) == (404, "not-found")


class TestReplay:
    async def test_a_failed_task_is_handed_out_again(self, api: Gateway) -> None:
        task = await api.submit()
        await api.fail(task)

        response = await api.client.post(f"{TASKS}/{task['id']}/replay", json={"reason": "fixed"})

        assert response.status_code == 200
        body = response.json()
        assert (body["status"], body["dispatch"], body["replay"], body["errors"]) == ("NEW", 2, 1, [])

    async def test_the_same_replay_twice_is_one(self, api: Gateway) -> None:
        task = await api.submit()
        await api.fail(task)
        replay = {"reason": "fixed", "dispatch": 1}

        first = await api.client.post(f"{TASKS}/{task['id']}/replay", json=replay)
        again = await api.client.post(f"{TASKS}/{task['id']}/replay", json=replay)

        assert first.status_code == again.status_code == 200
        assert first.json() == again.json()

    @pytest.mark.parametrize("dispatch", [None, 1])
    async def test_a_task_that_has_not_ended_badly_is_not_replayed(
        self, api: Gateway, dispatch: int | None
    ) -> None:
        task = await api.submit()
        body = {"reason": "why not", "dispatch": dispatch}

        response = await api.client.post(f"{TASKS}/{task['id']}/replay", json=body)

        assert problem(response) == (409, "conflict")
        assert "NEW with dispatch 1" in response.json()["detail"]

    async def test_an_old_dispatch_is_not_replayed(self, api: Gateway) -> None:
        task = await api.submit()
        await api.fail(task)

        response = await api.client.post(f"{TASKS}/{task['id']}/replay", json={"reason": "x", "dispatch": 9})

        assert problem(response) == (409, "conflict")

    @pytest.mark.parametrize("dispatch", [None, 1])
    async def test_an_unknown_task_is_not_found(self, api: Gateway, dispatch: int | None) -> None:
        body = {"reason": "x", "dispatch": dispatch}

        assert problem(await api.client.post(f"{UNKNOWN}/replay", json=body)) == (404, "not-found")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "reason"),
            ({"reason": ""}, "reason"),
            ({"reason": " \n"}, "reason"),
            (
                {"reason": "\ufeff"},
                "reason",
            ),  # a blank in JSON Schema's regular expressions, though not in Python's
            ({"reason": "\x1c"}, "reason"),  # and the other way round
            ({"reason": "r" * 501}, "reason"),
            ({"reason": "x", "dispatch": 0}, "dispatch"),
            ({"reason": "x", "dispatch": 2**31}, "dispatch"),
            ({"reason": "x", "force": True}, "force"),
        ],
    )
    async def test_what_does_not_fit_is_named(self, api: Gateway, body: dict[str, Any], field: str) -> None:
        response = await api.client.post(f"{TASKS}/{uuid4()}/replay", json=body)

        assert problem(response) == (422, "invalid")
        assert list(faults(response)) == [field]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
