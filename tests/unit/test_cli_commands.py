from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cli.outbox import OutboxStatusName
from pipeline.cli.outside import Outside
from pipeline.cli.tasks import PriorityName, StatusName
from storage.model import OutboxStatus, Priority, Status

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

TASK_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
UNSET = {"BATON_URL": None, "BATON_TOKEN": None}


def task(**fields: Any) -> dict[str, Any]:
    return {"id": TASK_ID, "kind": "echo", "status": "COMPLETED", "errors": [], "attempt": 1} | fields


class Api:
    """Answers by method and path, each list of answers in turn and the last one for ever."""

    def __init__(self, **answers: list[httpx.Response | BaseException]) -> None:
        self.answers = answers
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answers = self.answers[request.method.lower()]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def baton(self, *arguments: str, given: str | None = None, **environ: str) -> Result:
        """Run a command against this API."""
        outside = Outside(transport=httpx.MockTransport(self))
        return CliRunner().invoke(app, arguments, input=given, env={**UNSET, **environ}, obj=outside)

    def body(self) -> Any:
        return json.loads(self.asked[0].content)

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.asked]


def ok(code: int = 200, /, **fields: Any) -> httpx.Response:
    return httpx.Response(code, json=fields)


def refused(status: int, title: str) -> httpx.Response:
    content = json.dumps({"title": title, "status": status}).encode()
    return httpx.Response(status, content=content, headers={"content-type": "application/problem+json"})


@pytest.mark.parametrize(
    ("names", "members"), [(PriorityName, Priority), (StatusName, Status), (OutboxStatusName, OutboxStatus)]
)
def test_the_options_know_every_name_of_the_ledger(names: Any, members: Any) -> None:
    assert list(names.__args__) == [member.name for member in members]


class TestConnection:
    def test_url_and_token_come_from_the_environment(self) -> None:
        api = Api(get=[ok(items=[], next=None)])
        api.baton("tasks", "list", BATON_URL="http://elsewhere:9", BATON_TOKEN="sesame")
        assert str(api.asked[0].url) == "http://elsewhere:9/api/v1/tasks"
        assert api.asked[0].headers["authorization"] == "Bearer sesame"

    def test_options_win(self) -> None:
        api = Api(get=[ok(items=[], next=None)])
        api.baton("outbox", "list", "--url", "http://here", BATON_URL="http://elsewhere:9")
        assert api.asked[0].url.host == "here"

    def test_nobody_listens_at_the_default(self) -> None:
        result = Api(get=[httpx.ConnectError("refused")]).baton("tasks", "list")
        assert result.exit_code == 4
        assert result.stderr.startswith("Error: cannot reach http://127.0.0.1:8000: refused\n`make run`")
        assert result.stdout == ""

    def test_a_problem_ends_without_a_traceback(self) -> None:
        result = Api(get=[refused(404, "There is no such thing")]).baton("tasks", "show", TASK_ID)
        assert result.exit_code == 2
        assert result.stderr == "Error: There is no such thing (404)\n"

    def test_ctrl_c_is_130(self) -> None:
        assert Api(get=[KeyboardInterrupt()]).baton("tasks", "list").exit_code == 130


class TestLists:
    def test_filters_are_passed_on(self) -> None:
        api = Api(get=[ok(items=[], next=None)])
        result = api.baton(
            *("tasks", "list", "--status", "failed", "--priority", "high", "--kind", "a", "--tag", "b"),
            *("--created-from", "2030-01-31T12:00:00+01:00", "--limit", "7", "--cursor", TASK_ID),
        )
        assert result.exit_code == 0, result.output
        assert dict(api.asked[0].url.params) == {
            "status": "FAILED",
            "priority": "HIGH",
            "kind": "a",
            "tag": "b",
            "created_from": "2030-01-31T12:00:00+01:00",
            "limit": "7",
            "cursor": TASK_ID,
        }

    def test_dead_letters_and_outbox_have_theirs(self) -> None:
        api = Api(get=[ok(items=[], next=None)])
        api.baton("dead-letters", "list", "--task", TASK_ID, "--kind", "a")
        api.baton("outbox", "list", "--status", "failed")
        assert api.paths == [
            f"GET /api/v1/dead-letters?task_id={TASK_ID}&kind=a",
            "GET /api/v1/outbox?status=FAILED",
        ]

    def test_a_page_is_a_table_and_says_that_there_is_more(self) -> None:
        items = [task(name="word " * 60), task(name="short")]
        result = Api(get=[ok(items=items, next="c2")]).baton("tasks", "list")
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["id", TASK_ID, TASK_ID]
        assert "--cursor c2" in result.stderr

    def test_all_pages_are_shown_without_that_remark(self) -> None:
        api = Api(get=[ok(items=[task(kind="a")], next="c2"), ok(items=[task(kind="b")], next=None)])
        result = api.baton("tasks", "list", "--all")
        assert len(api.asked) == 2
        assert [line.split()[:2] for line in result.stdout.splitlines()] == [
            ["id", "kind"],
            [TASK_ID, "a"],
            [TASK_ID, "b"],
        ]
        assert result.stderr == ""

    def test_an_empty_page_does_not_end_a_list(self) -> None:
        api = Api(
            get=[ok(items=[], next="c2"), ok(items=[task(kind="a")], next="c3"), ok(items=[], next=None)]
        )
        result = api.baton("tasks", "list", "--all")
        assert [line.split()[:2] for line in result.stdout.splitlines()] == [["id", "kind"], [TASK_ID, "a"]]
        assert result.stderr == ""

    def test_an_empty_page_tells_where_the_list_goes_on(self) -> None:
        result = Api(get=[ok(items=[], next="c2")]).baton("tasks", "list")
        assert (result.stdout, result.stderr) == ("", "The list goes on: --cursor c2, or --all\n")

    def test_json_is_the_answer_and_nothing_else(self) -> None:
        text = '{"items":[{"big":123456789012345678901234567890,"x":1e400}],"next":"c2"}'
        answer = httpx.Response(200, text=text, headers={"content-type": "application/json"})
        result = Api(get=[answer]).baton("dead-letters", "list", "--json")
        assert result.output == text + "\n"

    def test_all_as_json_is_one_page_a_line(self) -> None:
        api = Api(get=[ok(items=[1], next="c2"), ok(items=[2], next=None)])
        lines = api.baton("outbox", "list", "--all", "--json").output.splitlines()
        assert [json.loads(line)["items"] for line in lines] == [[1], [2]]

    def test_nothing_found_is_said_aside(self) -> None:
        result = Api(get=[ok(items=[], next=None)]).baton("outbox", "list")
        assert (result.stdout, result.stderr) == ("", "Nothing is there.\n")

    @pytest.mark.parametrize("option", [("--limit", "0"), ("--limit", "201"), ("--status", "DONE")])
    def test_a_wrong_option_asks_nobody(self, option: tuple[str, str]) -> None:
        api = Api()
        assert api.baton("tasks", "list", *option).exit_code == 2
        assert api.asked == []


class TestTasks:
    def test_show_has_every_field(self) -> None:
        result = Api(get=[ok(**task(payload={"x": 1}, name="n"))]).baton("tasks", "show", TASK_ID)
        assert result.exit_code == 0
        assert '"x": 1' in result.stdout

    def test_show_may_wait(self) -> None:
        api = Api(get=[ok(**task())])
        api.baton("tasks", "show", TASK_ID, "--wait-seconds", "5")
        assert api.paths == [f"GET /api/v1/tasks/{TASK_ID}?wait=5"]

    def test_an_id_is_a_uuid(self) -> None:
        assert Api().baton("tasks", "show", "../kinds").exit_code == 2

    def test_cancel(self) -> None:
        api = Api(delete=[ok(**task(status="CANCELLED"))])
        result = api.baton("tasks", "cancel", TASK_ID, "--json")
        assert api.paths == [f"DELETE /api/v1/tasks/{TASK_ID}"]
        assert json.loads(result.stdout)["status"] == "CANCELLED"
        assert result.stderr == ""

    def test_cancelling_a_running_task_says_that_it_was_asked(self) -> None:
        result = Api(delete=[ok(202, **task(status="IN_PROGRESS"))]).baton("tasks", "cancel", TASK_ID)
        assert "asked to stop" in result.stderr

    def test_replay_gives_its_reason_and_names_a_dispatch_if_told(self) -> None:
        api = Api(post=[ok(**task(status="NEW"))])
        api.baton("tasks", "replay", TASK_ID, "--reason", "bug fixed")
        api.baton("tasks", "replay", TASK_ID, "--reason", "bug fixed", "--dispatch", "4")
        assert api.paths == [f"POST /api/v1/tasks/{TASK_ID}/replay"] * 2
        assert [json.loads(request.content) for request in api.asked] == [
            {"reason": "bug fixed"},
            {"reason": "bug fixed", "dispatch": 4},
        ]

    def test_replay_wants_a_reason(self) -> None:
        assert "--reason" in Api().baton("tasks", "replay", TASK_ID).stderr


def test_a_dead_letter_is_shown() -> None:
    api = Api(get=[ok(id=5, reason="error", task_id=TASK_ID)])
    assert TASK_ID in api.baton("dead-letters", "show", "5").stdout
    assert api.paths == ["GET /api/v1/dead-letters/5"]


def test_an_outbox_row_is_retried() -> None:
    api = Api(post=[ok(id=5, status="WAITING")])
    assert json.loads(api.baton("outbox", "retry", "5", "--json").stdout)["status"] == "WAITING"
    assert api.paths == ["POST /api/v1/outbox/5/retry"]


class TestSubmit:
    def accepting(self, **outcome: Any) -> Api:
        return Api(post=[ok(201, **task(status="NEW"))], get=[ok(**task(**outcome))])

    def test_the_result_is_shown(self) -> None:
        api = self.accepting(result={"hello": "world"})
        result = api.baton("submit", "echo", '{"hello":"world"}')
        assert result.exit_code == 0
        status, _, shown = result.stdout.partition("\n")
        assert status == f"COMPLETED {TASK_ID}"
        assert json.loads(shown) == {"hello": "world"}
        assert result.stderr == f"accepted {TASK_ID}\n"
        assert api.body() == {"kind": "echo", "payload": {"hello": "world"}}

    def test_a_failure_shows_its_last_error(self) -> None:
        errors = [
            {"attempt": 1, "type": "OSError", "message": "first"},
            {"attempt": 2, "type": "ValueError", "message": "last"},
        ]
        result = self.accepting(status="FAILED", errors=errors).baton("submit", "fail")
        assert result.exit_code == 1
        assert result.stdout == f"FAILED {TASK_ID}\nattempt 2: ValueError: last\n"

    def test_a_cancelled_one_is_no_success(self) -> None:
        result = self.accepting(status="CANCELLED").baton("submit", "echo")
        assert (result.exit_code, result.stdout) == (1, f"CANCELLED {TASK_ID}\n")

    def test_time_up_is_an_exit_code_of_its_own(self) -> None:
        result = self.accepting(status="IN_PROGRESS").baton("submit", "echo", "--wait-seconds", "0.01")
        assert (result.exit_code, result.stdout) == (3, f"IN_PROGRESS {TASK_ID}\n")

    def test_without_waiting_it_is_done_when_accepted(self) -> None:
        api = Api(post=[ok(201, **task(status="NEW"))])
        result = api.baton("submit", "echo", "--no-wait")
        assert (result.exit_code, result.output) == (0, f"NEW {TASK_ID}\n")
        assert api.paths == ["POST /api/v1/tasks"]

    @pytest.mark.parametrize("option", [(), ("--no-wait",)])
    def test_json_on_standard_output_and_nothing_else(self, option: tuple[str, ...]) -> None:
        result = self.accepting().baton("submit", "echo", "--json", *option)
        assert json.loads(result.stdout)["id"] == TASK_ID
        assert result.stdout.count("\n") == 1

    def test_all_options_are_passed_on(self) -> None:
        api = self.accepting()
        result = api.baton(
            *("submit", "echo", "null", "--name", "n", "--priority", "low", "--delay-seconds", "1.5"),
            *("--timeout-seconds", "9", "--max-retries", "0", "--tag", "a", "--tag", "b", "--key", "k1"),
        )
        assert result.exit_code == 0, result.output
        assert api.body() == {
            "kind": "echo",
            "payload": None,
            "name": "n",
            "priority": "LOW",
            "delay_seconds": 1.5,
            "timeout_seconds": 9.0,
            "max_retries": 0,
            "tags": ["a", "b"],
        }
        assert api.asked[0].headers["idempotency-key"] == "k1"

    def test_the_payload_travels_as_it_was_written(self) -> None:
        text = '{"b": 1e5, "a": 12345678901234567890123, "a": "\\u00e4", "z": 1.10}'
        api = self.accepting()
        api.baton("submit", "echo", text)
        assert text.encode() in api.asked[0].content

    def test_a_payload_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "payload.json").write_text('{"from":"file"}\n')
        api = self.accepting()
        api.baton("submit", "echo", f"@{tmp_path / 'payload.json'}")
        assert api.body()["payload"] == {"from": "file"}

    def test_a_payload_from_standard_input(self) -> None:
        api = self.accepting()
        api.baton("submit", "echo", "-", given='{"from":"stdin"}')
        assert api.body()["payload"] == {"from": "stdin"}

    @pytest.mark.parametrize(
        "payload", ["{oops", "", "NaN", "@/nonexistent/file", "@/", '"\udcff"', "[" * 10_000 + "]" * 10_000]
    )
    def test_a_payload_that_is_none_is_not_sent(self, payload: str) -> None:
        api = Api()
        result = api.baton("submit", "echo", payload)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert "payload" in result.stderr
        assert api.asked == []

    @pytest.mark.parametrize(
        "trouble", [httpx.ReadError("cut"), refused(503, "The database's reply was lost")]
    )
    def test_a_lost_reply_names_the_key_that_makes_a_repeat_safe(
        self, trouble: httpx.Response | Exception
    ) -> None:
        api = Api(post=[trouble])
        result = api.baton("submit", "echo")
        assert result.exit_code == 4
        assert f"--key {api.asked[0].headers['idempotency-key']}" in result.stderr

    def test_every_submission_without_a_key_gets_its_own(self) -> None:
        api = self.accepting()
        api.baton("submit", "echo", "--no-wait")
        api.baton("submit", "echo", "--no-wait")
        assert len({request.headers["idempotency-key"] for request in api.asked}) == 2

    def test_a_refusal_is_a_wrong_request(self) -> None:
        result = Api(post=[refused(422, "No handler serves this kind")]).baton("submit", "nope")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--key" not in result.stderr


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("run", "migrate", "settings", "submit", "tasks", "dead-letters", "outbox"):
        assert f"\n  {command} " in result.stdout
