from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pipeline.cli.client import Client
from pipeline.cli.failure import ExitCode, Failure, ReplyLost

if TYPE_CHECKING:
    from collections.abc import Callable

TASK_ID = uuid.UUID(int=7)


def client_of(*answers: httpx.Response | Exception, asked: list[httpx.Request] | None = None) -> Client:
    """Make a client whose service gives these answers, the last one for ever."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append(request)
        given = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(given, Exception):
            raise given
        return given

    return Client("http://baton.test:1/", transport=httpx.MockTransport(answer), sleep=lambda _: None)


def good(**fields: Any) -> httpx.Response:
    return httpx.Response(200, json=fields)


def problem(status: int, **fields: Any) -> httpx.Response:
    body = json.dumps({"type": "urn:x", "status": status, **fields}).encode()
    return httpx.Response(status, content=body, headers={"content-type": "application/problem+json"})


def failure_of(*answers: httpx.Response | Exception) -> Failure:
    with client_of(*answers) as client, pytest.raises(Failure) as caught:
        client.get("/tasks")
    return caught.value


def test_calls_go_below_the_api_with_the_token() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return good()

    with Client("http://baton.test/base/", "sesame", httpx.MockTransport(answer)) as client:
        client.get("/tasks", {"kind": "a b", "limit": None, "cursor": ""})
    [request] = asked
    assert str(request.url) == "http://baton.test/base/api/v1/tasks?kind=a+b"
    assert request.headers["authorization"] == "Bearer sesame"


def test_without_a_token_none_is_sent() -> None:
    asked: list[httpx.Request] = []
    with client_of(good(), asked=asked) as client:
        client.delete("/tasks/1")
    assert "authorization" not in asked[0].headers


def test_a_post_is_json_with_its_key() -> None:
    asked: list[httpx.Request] = []
    with client_of(good(), asked=asked) as client:
        client.post("/tasks", {"kind": "echo"}, "k1")
        client.post("/outbox/1/retry")
    assert json.loads(asked[0].content) == {"kind": "echo"}
    assert asked[0].headers["content-type"] == "application/json"
    assert asked[0].headers["idempotency-key"] == "k1"
    assert asked[1].content == b""
    assert "idempotency-key" not in asked[1].headers


@pytest.mark.parametrize("token", ["a\nb", "tökén"])
def test_a_token_that_no_header_holds_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(Failure, match="--token") as caught:
        Client("http://baton.test", token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host:port", "host:8000", "ftp://host", "http://"])
def test_a_url_that_is_none_is_a_wrong_argument(url: str) -> None:
    with pytest.raises(Failure) as caught, Client(url) as client:
        client.get("/tasks")
    assert caught.value.exit_code == ExitCode.WRONG


class TestFailures:
    def test_nobody_listens(self) -> None:
        failure = failure_of(httpx.ConnectError("refused"))
        assert failure.exit_code == ExitCode.UNANSWERED
        assert not isinstance(failure, ReplyLost)
        assert "cannot reach http://baton.test:1: refused" in str(failure)
        assert "make run" in str(failure)

    @pytest.mark.parametrize("error", [httpx.ReadTimeout(""), httpx.RemoteProtocolError("cut")])
    def test_a_reply_that_is_lost(self, error: Exception) -> None:
        failure = failure_of(error)
        assert isinstance(failure, ReplyLost)
        assert str(error) or "ReadTimeout" in str(failure)

    def test_a_problem_is_one_line(self) -> None:
        failure = failure_of(problem(409, title="The state does not allow this", detail="it is COMPLETED"))
        assert str(failure) == "The state does not allow this (409): it is COMPLETED"
        assert failure.exit_code == ExitCode.WRONG

    def test_a_full_backlog_says_when_to_repeat(self) -> None:
        answer = problem(429, title="Too many tasks wait already", detail="500000 do")
        answer.headers["retry-after"] = "20"
        failure = failure_of(answer)
        assert failure.exit_code == ExitCode.UNANSWERED
        assert not isinstance(failure, ReplyLost)
        assert str(failure) == (
            "Too many tasks wait already (429): 500000 do\nNothing was handed over; repeat it in 20 seconds."
        )

    def test_failing_fields_follow_one_a_line(self) -> None:
        errors = [
            {"field": "kind", "message": "is not known", "allowed": ["echo", "sleep"]},
            {"field": "name", "message": "is too long", "allowed": "up to 200 characters"},
            {"field": "payload.n", "message": "Expected `int`"},
        ]
        failure = failure_of(
            problem(422, title="The request does not fit", detail="all again", errors=errors)
        )
        assert str(failure).splitlines() == [
            "The request does not fit (422)",
            "  kind: is not known; allowed: echo, sleep",
            "  name: is too long; allowed: up to 200 characters",
            "  payload.n: Expected `int`",
        ]

    def test_401_says_where_a_token_goes(self) -> None:
        assert "BATON_TOKEN" in str(failure_of(problem(401, title="A valid token is required")))

    def test_a_service_in_trouble_leaves_the_outcome_open(self) -> None:
        failure = failure_of(problem(503, title="The database does not answer"))
        assert isinstance(failure, ReplyLost)
        assert str(failure) == "The database does not answer (503)"

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(200, html="<html>"),
            httpx.Response(404, html="<html>"),
            httpx.Response(301, headers={"location": "https://elsewhere"}),
            httpx.Response(422, content=b"{", headers={"content-type": "application/problem+json"}),
        ],
    )
    def test_what_is_not_baton_is_told_so(self, answer: httpx.Response) -> None:
        failure = failure_of(answer)
        assert failure.exit_code == ExitCode.WRONG
        assert "as Baton does not; check --url" in str(failure)

    def test_a_proxy_before_a_dead_service(self) -> None:
        assert isinstance(failure_of(httpx.Response(502, html="<html>")), ReplyLost)

    def test_text_that_is_not_unicode_is_refused_before_it_is_sent(self) -> None:
        with client_of(good()) as client, pytest.raises(Failure) as caught:
            client.post("/tasks", {"kind": "\udcff"})
        assert caught.value.exit_code == ExitCode.WRONG


class TestPages:
    def test_one_page_unless_all_are_asked(self) -> None:
        asked: list[httpx.Request] = []
        with client_of(good(items=[1], next="c2"), asked=asked) as client:
            pages = list(client.pages("/tasks", {"limit": 1}, "c1", every=False))
        assert [page.json()["items"] for page in pages] == [[1]]
        assert dict(asked[0].url.params) == {"limit": "1", "cursor": "c1"}

    def test_all_pages_follow_the_cursor_to_its_end(self) -> None:
        asked: list[httpx.Request] = []
        with client_of(
            good(items=[1], next="a"), good(items=[2], next="b"), good(items=[3], next=None), asked=asked
        ) as client:
            pages = list(client.pages("/tasks", {}, None, every=True))
        assert [page.json()["items"] for page in pages] == [[1], [2], [3]]
        assert [request.url.params.get("cursor") for request in asked] == [None, "a", "b"]


class TestWait:
    def test_the_service_does_the_waiting(self) -> None:
        asked: list[httpx.Request] = []
        with client_of(good(status="COMPLETED"), asked=asked) as client:
            assert client.wait(TASK_ID, 300).json()["status"] == "COMPLETED"
        assert str(asked[0].url).endswith(f"/tasks/{TASK_ID}?wait=20")

    @pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELLED"])
    def test_asks_again_until_the_task_has_ended(self, status: str) -> None:
        asked: list[httpx.Request] = []
        running = good(status="IN_PROGRESS")
        with client_of(running, running, good(status=status), asked=asked) as client:
            assert client.wait(TASK_ID, 60).json()["status"] == status
        assert len(asked) == 3

    def test_returns_what_there_is_when_the_time_is_up(self) -> None:
        asked: list[httpx.Request] = []
        with client_of(good(status="PENDING"), asked=asked) as client:
            assert client.wait(TASK_ID, 0.02).json()["status"] == "PENDING"
            assert client.wait(TASK_ID, 0).json()["status"] == "PENDING"
        assert "wait" not in asked[-1].url.params

    @pytest.mark.parametrize(
        "trouble", [httpx.ConnectError("refused"), httpx.ReadError("cut"), problem(503, title="Stopping")]
    )
    def test_a_service_that_restarts_is_waited_for(self, trouble: httpx.Response | Exception) -> None:
        with client_of(trouble, trouble, good(status="COMPLETED")) as client:
            assert client.wait(TASK_ID, 60).json()["status"] == "COMPLETED"

    def test_but_not_longer_than_asked(self) -> None:
        with client_of(httpx.ConnectError("refused")) as client, pytest.raises(Failure, match="cannot reach"):
            client.wait(TASK_ID, 0.02)

    def test_a_refusal_ends_it_at_once(self) -> None:
        asked: list[httpx.Request] = []
        gone = problem(404, title="There is no such thing")
        with client_of(gone, asked=asked) as client, pytest.raises(Failure):
            client.wait(TASK_ID, 60)
        assert len(asked) == 1

    def test_between_quick_answers_there_is_a_pause(self) -> None:
        pauses: list[float] = []
        answers: list[Callable[[], httpx.Response]] = [
            lambda: good(status="NEW"),
            lambda: good(status="COMPLETED"),
        ]
        transport = httpx.MockTransport(lambda _: answers.pop(0)())
        with Client("http://baton.test", transport=transport, sleep=pauses.append) as client:
            client.wait(TASK_ID, 60)
        [pause] = pauses
        assert 0 < pause <= 0.5
