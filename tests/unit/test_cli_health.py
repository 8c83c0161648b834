from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

NO_SETTINGS: dict[str, str | None] = {name.upper(): None for name in msgspec.structs.asdict(Settings())}
POLL = {"role": "relay", "check": "poll", "ok": True, "age_seconds": 0.44, "limit_seconds": 16.0, "error": ""}
HEARTBEAT = {
    "role": "worker",
    "check": "heartbeat",
    "ok": False,
    "age_seconds": None,
    "limit_seconds": 15.0,
    "error": "",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> Iterator[None]:
    with contextlib.chdir(tmp_path):
        yield


@contextlib.contextmanager
def answering(body: object) -> Iterator[str]:
    """Stand for a process that says this of its health; the port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health/ready"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield str(server.server_port)
        finally:
            server.shutdown()
            thread.join()


def health(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, ["health", *arguments], env={**NO_SETTINGS, **environ})


def test_a_ready_process_is_a_success() -> None:
    with answering({"ready": True, "checks": [POLL]}) as port:
        result = health(METRICS_PORT=port)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split() == ["relay", "poll", "yes", "0.4", "16"]


def test_what_is_behind_is_shown_and_fails() -> None:
    with answering({"ready": False, "checks": [POLL, HEARTBEAT]}) as port:
        result = health(METRICS_PORT=port)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[2].split() == ["worker", "heartbeat", "NO", "never", "15"]


def test_scripts_get_the_answer_as_it_is() -> None:
    body = {"ready": False, "checks": [HEARTBEAT]}
    with answering(body) as port:
        result = health("--json", METRICS_PORT=port)
    assert (result.exit_code, json.loads(result.stdout)) == (1, body)


def test_a_process_that_listens_everywhere_is_asked_here() -> None:
    with answering({"ready": True, "checks": []}) as port:
        assert health(METRICS_PORT=port, METRICS_HOST="0.0.0.0").exit_code == 0


def test_nobody_there_is_a_failure() -> None:
    result = health(METRICS_PORT="1")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: nobody answers on 127.0.0.1:1: ")


@pytest.mark.parametrize("body", [[], {"ready": True}, "hello"])
def test_somebody_else_there_is_a_failure(body: object) -> None:
    with answering(body) as port:
        result = health(METRICS_PORT=port)
    assert (result.exit_code, result.stderr) == (1, "Error: what answers on METRICS_PORT is not Baton\n")


def test_without_a_port_it_says_what_to_set() -> None:
    result = health()
    assert result.exit_code == 2
    assert "set METRICS_PORT to a number from 1 to 65535" in result.stderr
