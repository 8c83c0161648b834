from __future__ import annotations

import contextlib
import json
import os
import signal
import xml.etree.ElementTree as ET
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from typer.testing import CliRunner

from pipeline.bench import bench, costs, scenarios
from pipeline.cli import app
from pipeline.cli.outside import Outside
from pipeline.settings import Settings
from storage.errors import Unavailable
from storage.model import Status
from tests.support.answering import Reply, Request, answering_in_a_thread
from tests.support.deployment import Deployment
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from typer.testing import Result

NO_SETTINGS: dict[str, str | None] = {name.upper(): None for name in msgspec.structs.asdict(Settings())}
HINT = "`baton settings` shows what is set; for a `baton run --embedded` of this folder add --embedded"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(costs, "STATISTICS_SECONDS", 0.0)
    monkeypatch.setattr(scenarios, "STATISTICS_SECONDS", 0.0)
    monkeypatch.setattr(scenarios, "LEAD_SECONDS", 1.0)
    monkeypatch.setattr(bench, "LOOK_SECONDS", 0.01)
    with contextlib.chdir(tmp_path):
        yield tmp_path


def baton(deployment: Deployment | None, url: str, *arguments: str, **environ: str) -> Result:
    """Run a command; without a deployment its database is out of reach."""

    @asynccontextmanager
    async def measurements(_settings: Settings) -> AsyncIterator[Deployment]:
        if deployment is None:
            raise Unavailable("nobody answers")
        yield deployment

    command = ["bench", *arguments, *(["--url", url] if url else [])]
    outside = Outside(open_measurements=measurements)
    return CliRunner().invoke(app, command, env={**NO_SETTINGS, "BATON_TOKEN": None, **environ}, obj=outside)


def run(deployment: Deployment, *arguments: str, **environ: str) -> Result:
    with answering_in_a_thread(deployment.answer) as url:
        return baton(deployment, url, *arguments, **environ)


SMALL = {
    "drain": ("--tasks", "30", "--warm-up-tasks", "10"),
    "accept": ("--seconds", "0.1", "--connections", "2", "--warm-up-seconds", "0"),
    "latency": ("--tasks", "3", "--warm-up-tasks", "1"),
    "mixed": ("--rate", "100", "--seconds", "0.1", "--warm-up-seconds", "0"),
}


class TestScenarios:
    @pytest.mark.parametrize("name", SMALL)
    def test_as_json_there_is_the_report_and_nothing_else(self, name: str) -> None:
        deployment = Deployment()
        result = run(deployment, name, *SMALL[name], "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["scenario"] == name
        assert report["written"] + 1 == len(deployment.tasks)
        assert f"{len(deployment.tasks):,} tasks with the tag {report['setup']['tag']} were" in result.stderr
        assert "RETENTION_SECONDS (604800) removes them" in result.stderr

    @pytest.mark.parametrize("name", SMALL)
    def test_for_people_there_is_a_table(self, name: str) -> None:
        result = run(Deployment(), name, *SMALL[name], RETENTION_SECONDS="0")
        assert result.exit_code == 0, result.output
        names = [line[:20].split("  ")[0] for line in result.stdout.splitlines()]
        assert {
            "service",
            "database",
            "task",
            "answers",
            "WAL",
            "commits that wrote",
            "SQL round trips",
        } <= set(names)
        assert "CPU of load generator" in result.stdout
        assert "they stay" in result.stderr

    def test_the_seconds_are_drawn(self, folder: Path) -> None:
        result = run(Deployment(), "accept", *SMALL["accept"], "--plot", "accept.svg")
        assert result.exit_code == 0, result.output
        assert ET.parse(folder / "accept.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own

    def test_a_process_counts_by_its_name(self) -> None:
        result = run(Deployment(), "latency", *SMALL["latency"], "--pid", f"its=self={os.getpid()}", "--json")
        assert json.loads(result.stdout)["costs"]["cpu_us_per_task"]["its=self"] is not None

    def test_every_task_is_as_it_was_asked_for(self) -> None:
        deployment = Deployment()
        arguments = ("--kind", "mail", "--payload", '{"to": 1e3}', "--priority", "high")
        assert run(deployment, "latency", *SMALL["latency"], *arguments).exit_code == 0
        assert {(task["kind"], task["priority"]) for task in deployment.tasks} == {("mail", "HIGH")}
        assert all(b'"payload":{"to": 1e3}' in each.body for each in deployment.asked if each.body)

    def test_the_token_is_sent(self) -> None:
        deployment = Deployment()
        run(deployment, "latency", *SMALL["latency"], "--token", "sesame")
        assert {each.headers["authorization"] for each in deployment.asked} == {"Bearer sesame"}


class TestEnds:
    def test_a_task_that_fails_is_exit_code_1(self) -> None:
        deployment = Deployment(lambda number: Status.FAILED if number == 3 else Status.COMPLETED)
        result = run(deployment, "latency", *SMALL["latency"])
        assert result.exit_code == 1
        assert "Error: not every task is COMPLETED: 1 FAILED" in result.stderr
        assert "COMPLETED" in result.stdout

    def test_ctrl_c_is_130_with_what_was_measured_so_far(self) -> None:
        deployment = Deployment()

        def interrupt(_request: Request) -> Reply | None:
            if len(deployment.asked) == 20:
                os.kill(os.getpid(), signal.SIGINT)
            return None

        deployment.replies = interrupt
        result = run(deployment, "accept", "--seconds", "3600", "--warm-up-seconds", "0", "--json")
        assert result.exit_code == 130
        report = json.loads(result.stdout)
        assert report["interrupted"]
        assert report["accepted"] > 0
        assert "Stopping" in result.stderr

    def test_a_refused_batch_is_told(self) -> None:
        deployment = Deployment()
        refused = Reply(429, {"title": "Too many tasks wait already", "detail": "500000 do"})
        deployment.replies = lambda request: refused if b'"run_at"' in request.body else None
        result = run(deployment, "drain", *SMALL["drain"])
        assert result.exit_code == 1
        assert "Too many tasks wait already (429): 500000 do" in result.stderr


class TestBeforehand:
    def test_a_first_task_tells_what_is_wrong_with_the_options(self) -> None:
        deployment = Deployment()
        problem = {
            "title": "The request does not fit",
            "errors": [{"field": "kind", "message": "is not known", "allowed": ["echo"]}],
        }
        deployment.replies = lambda _: Reply(422, problem)
        result = run(deployment, "accept", "--kind", "nope")
        assert result.exit_code == 2
        assert result.stderr == "Error: The request does not fit (422)\n  kind: is not known; allowed: echo\n"
        assert len(deployment.asked) == 1

    def test_a_kind_that_fails_is_not_measured(self) -> None:
        result = run(Deployment(lambda _: Status.FAILED), "drain", "--kind", "fail")
        assert result.exit_code == 1
        assert result.stderr == "Error: a first task of the kind fail is FAILED after 20 s: boom\n"

    def test_without_a_worker_nothing_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.cli.bench.PROBE_SECONDS", 0.01)
        result = run(Deployment(lambda _: Status.PENDING), "latency")
        assert result.exit_code == 1
        assert "is PENDING after 0.01 s: is a worker up that knows this kind?" in result.stderr

    def test_but_accepting_is(self) -> None:
        assert run(Deployment(lambda _: Status.NEW), "accept", *SMALL["accept"]).exit_code == 0

    def test_a_service_on_another_database_is_told(self) -> None:
        with answering_in_a_thread(Deployment().answer) as url:
            result = baton(Deployment(), url, "latency", POSTGRES_HOST="db.test")
        assert result.exit_code == 2
        assert (
            f"the service at {url} does not write to the database of the settings, db.test:5432/"
            in result.stderr
        )
        assert result.stderr.endswith(f"; {HINT}\n")

    def test_a_database_out_of_reach_is_told(self) -> None:
        with answering_in_a_thread(Deployment().answer) as url:
            result = baton(None, url, "latency", POSTGRES_HOST="db.test")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: db.test:5432/")
        assert result.stderr.endswith(f": nobody answers; {HINT}\n")

    def test_nobody_listens(self) -> None:
        [port] = free_ports(1)
        result = baton(Deployment(), f"http://127.0.0.1:{port}", "accept")
        assert result.exit_code == 4
        assert f"cannot reach http://127.0.0.1:{port}" in result.stderr

    def test_a_missing_embedded_service_is_told(self, folder: Path) -> None:
        with answering_in_a_thread(Deployment().answer) as url:
            command = ["bench", "latency", "--embedded", "--url", url]
            result = CliRunner().invoke(app, command, env=NO_SETTINGS)
        assert result.exit_code == 1
        assert f"no embedded PostgreSQL runs on {folder.resolve() / '.baton'}" in result.stderr


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("drain", "--pid", "worker"), "--pid worker: allowed: NAME=PID, such as worker=1234"),
            (("drain", "--pid", "=1"), "--pid =1: allowed: NAME=PID"),
            (("drain", "--pid", "a=b"), "--pid a=b: allowed: NAME=PID"),
            (
                ("drain", "--pid", "a=4194305"),
                "--pid a=4194305: allowed: a process that runs on this machine",
            ),
            (("drain", "--pid", "load generator=1"), "--pid load generator=1: this name is taken"),
            (
                ("drain", "--pid", "a=1", "--pid", "a=1"),
                "--pid a=1: this name is taken; allowed: each name once",
            ),
            (("drain", "--plot", "no/where.svg"), "--plot no/where.svg: allowed: a file in a folder"),
            (("drain", "--plot", "."), "--plot .: allowed: a file in a folder"),
            (("mixed", "--rate", "inf"), "--rate inf: allowed: a number"),
            (("drain", "--payload", "{"), "the payload is not JSON"),
            (
                ("drain", "--payload", "1", "--payload-bytes", "11"),
                "--payload-bytes: allowed: one of --payload",
            ),
            (("drain", "--url", "host:8000"), "--url host:8000: allowed: http://host:port"),
            (("drain", "--token", "a\nb"), "--token: allowed"),
        ],
    )
    def test_what_cannot_be_used_is_told_before_anything_is_done(
        self, arguments: tuple[str, ...], told: str
    ) -> None:
        result = baton(Deployment(), "", *arguments)
        assert result.exit_code == 2, result.output
        assert told in result.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ("drain", "--tasks", "0"),
            ("drain", "--payload-bytes", "10"),
            ("drain", "--priority", "urgent"),
            ("accept", "--connections", "0"),
            ("mixed", "--rate", "-1"),
            ("accept", "--seconds", "nan"),
            ("latency", "--tasks", "many"),
        ],
    )
    def test_numbers_and_names_have_their_bounds(self, arguments: tuple[str, ...]) -> None:
        result = baton(Deployment(), "", *arguments)
        assert result.exit_code == 2
        assert arguments[1] in result.stderr

    def test_a_batch_that_the_api_would_not_take_is_told(self) -> None:
        result = run(Deployment(), "accept", "--batch", "1001")
        assert result.exit_code == 2
        assert "--batch 1001: allowed: 1 to 1000 with this payload" in result.stderr

    def test_settings_that_cannot_be_used_are_told(self) -> None:
        result = baton(Deployment(), "", "drain", POSTGRES_PORT="x")
        assert result.exit_code == 2
        assert "POSTGRES_PORT='x'" in result.stderr
