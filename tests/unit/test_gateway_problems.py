"""Errors: one form, one table, nothing internal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import structlog
from litestar.exceptions import InternalServerException, TooManyRequestsException

from gateway.problems import ProblemType, body_of, field_error, invalid, problem_of
from pipeline.handlers import PayloadInvalid
from storage import errors
from tests.support.gateway import TASKS, Broken, Gateway, Hands, gateway, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REFERENCE = Path(__file__).parents[2] / "documents" / "api.md"


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Gateway]:
    async with gateway() as opened:
        yield opened


async def test_an_unknown_path(api: Gateway) -> None:
    response = await api.client.get("/nowhere")

    assert problem(response) == (404, "no-such-path")
    assert response.json()["instance"] == "/nowhere"


async def test_a_method_the_path_does_not_take(api: Gateway) -> None:
    response = await api.client.put(TASKS)

    assert problem(response) == (405, "method-not-allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST", "OPTIONS"}


async def test_the_methods_a_path_takes(api: Gateway) -> None:
    response = await api.client.options(f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057")

    assert response.status_code == 204
    assert response.headers["allow"] == "DELETE, GET, OPTIONS"


@pytest.mark.parametrize(
    ("hand", "method", "path"),
    [
        ("tasks", "GET", TASKS),
        ("tasks", "GET", f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057"),
        ("tasks", "GET", f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057?wait=1"),
        ("tasks", "GET", f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057/status"),
        ("tasks", "DELETE", f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057"),
        ("tasks", "POST", f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057/replay"),
        ("dead_letters", "GET", "/api/v1/dead-letters"),
        ("dead_letters", "GET", "/api/v1/dead-letters/1"),
        ("outbox", "GET", "/api/v1/outbox"),
        ("outbox", "POST", "/api/v1/outbox/1/retry"),
    ],
)
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, (503, "late")),
        (errors.Unavailable("secret"), (503, "unavailable")),
        (errors.OutcomeUnknown("secret"), (503, "outcome-unknown")),
        (errors.SchemaMismatch("secret"), (503, "schema-mismatch")),
        (errors.StorageError("secret"), (503, "unavailable")),
        (errors.LockTimeout("secret"), (409, "busy")),
        (errors.Refused("secret"), (422, "not-storable")),
    ],
)
async def test_every_call_answers_what_the_ledger_raises(
    hand: str, method: str, path: str, error: Exception | None, expected: tuple[int, str]
) -> None:
    ledger = Hands(**{hand: Broken(error)})
    async with gateway(ledger, request_timeout_seconds=0.02) as api:
        body = {"reason": "x"} if method == "POST" else None
        response = await api.client.request(method, path, json=body)

    assert problem(response) == expected
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (expected[0] in {503, 409})


async def test_a_bug_is_a_500_that_tells_nothing_and_is_logged_once() -> None:
    async with gateway(Hands(tasks=Broken(ZeroDivisionError("secret")))) as api:
        with structlog.testing.capture_logs() as logs:
            response = await api.client.get(TASKS)

    assert problem(response) == (500, "internal")
    assert "secret" not in response.text
    [line] = logs
    assert (line["event"], line["path"]) == ("request failed", TASKS)
    assert isinstance(line["exc_info"], ZeroDivisionError)


async def test_what_the_database_refuses_is_logged() -> None:
    async with gateway(Hands(tasks=Broken(errors.Refused("invalid byte sequence")))) as api:
        with structlog.testing.capture_logs() as logs:
            await api.client.get(TASKS)

    assert [line["error"] for line in logs] == ["invalid byte sequence"]


async def test_expected_errors_are_not_logged(api: Gateway) -> None:
    with structlog.testing.capture_logs() as logs:
        await api.client.get("/nowhere")
        await api.client.post(TASKS, json={})

    assert logs == []


def test_every_storage_error_has_a_problem_of_its_own() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]

    assert len(kinds) > 5
    for kind in kinds:
        assert problem_of(kind("secret")).type is not ProblemType.INTERNAL
        assert "secret" not in body_of(problem_of(kind("secret"))).decode()


def test_litestar_s_own_errors_are_told_by_their_status() -> None:
    assert problem_of(TooManyRequestsException()).type is ProblemType.BAD_REQUEST
    assert problem_of(InternalServerException("secret")).type is ProblemType.INTERNAL


def test_a_payload_s_path_is_put_behind_its_field() -> None:
    told = problem_of(PayloadInvalid("Expected `int`, got `str`", "$.items[0].n"))

    assert [each.field for each in told.errors] == ["payload.items[0].n"]


def test_an_unknown_or_missing_field_is_named_itself() -> None:
    assert field_error("a", "Object contains unknown field `b`").field == "a.b"
    assert field_error("", "Object missing required field `b`").field == "b"
    assert field_error("", "Expected `object`").field == "body"


def test_the_detail_is_for_people_and_the_fields_for_programs() -> None:
    told = invalid(field_error("a", "is wrong"), field_error("b", "too"))

    assert told.detail == "a: is wrong; b: too"
    assert [each.field for each in told.errors] == ["a", "b"]


def test_the_reference_lists_every_problem_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", REFERENCE.read_text(), re.MULTILINE)

    assert sorted(rows) == sorted((each.slug, str(each.status)) for each in ProblemType)


def test_the_gateway_reaches_neither_driver() -> None:
    code = (
        "import sys, gateway.app, gateway.server;print(*{'psqlpy', 'aio_pika', 'aiormq'} & set(sys.modules))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "", "")
