"""`baton bench` against real processes, and what it says against what the database says."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio

from tests.support.ledgers import migrated
from tests.support.servers import private_postgres
from tests.support.service import BATON, Process, Service, service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.support.servers import OwnPostgres, RabbitmqServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLES = ("gateway", "relay", "worker")
PATH = {"PATH": os.environ["PATH"]}


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    exit_code: int | None
    stdout: str
    stderr: str


async def bench(environment: Mapping[str, str], folder: Path, *arguments: str) -> Ended:
    process = await asyncio.create_subprocess_exec(
        BATON,
        "bench",
        *arguments,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    return Ended(process.returncode, stdout.decode(), stderr.decode())


class Deployment(NamedTuple):
    """A service with servers of its own, and the folder that it runs in."""

    service: Service
    postgres: OwnPostgres
    folder: Path

    async def bench(self, *arguments: str) -> dict[str, Any]:
        """Run a scenario that must end well; its report."""
        pids = {role: self.service.processes(role)[0].pid for role in ROLES}
        pids["postgres"] = self.postgres.pids()[0]
        named = [part for name, pid in pids.items() for part in ("--pid", f"{name}={pid}")]
        url = str(self.service.client.base_url)
        ended = await bench(self.service.environment, self.folder, *arguments, *named, "--url", url, "--json")
        assert ended.exit_code == 0, ended
        report: dict[str, Any] = msgspec.json.decode(ended.stdout)
        tag = report["setup"]["tag"]
        # The first task is none of the report's.
        assert await self.tasks(tag, "true") == report["written"] + 1
        return report

    async def tasks(self, tag: str, condition: str) -> int:
        [(count,)] = await self.service.database.fetch(
            f"""SELECT count(*)::int FROM payloads p JOIN tasks t ON t.id = p.task_id
                WHERE p.tags = ARRAY[$1::text] AND p.name = 'baton bench' AND {condition}""",
            [tag],
        )
        return int(count)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(
    rabbitmq_server: RabbitmqServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Deployment]:
    folder = tmp_path_factory.mktemp("service")
    async with (
        private_postgres(tmp_path_factory.mktemp("postgres")) as postgres,
        rabbitmq_server.vhost() as vhost,
        service(postgres.home, vhost.url, folder) as started,
    ):
        await started.start_all()
        yield Deployment(started, postgres, folder)


def check_costs(costs: dict[str, Any], names: set[str]) -> None:
    """Check what holds of the costs of any task: it is written, and everybody has something to do with it."""
    assert costs["wal_bytes_per_task"] > 500
    assert costs["commits"] > 0
    assert costs["sql_round_trips"] > 0
    assert costs["cpu_us_per_task"].keys() == {"load generator", *ROLES, "postgres"}
    assert {name for name, microseconds in costs["cpu_us_per_task"].items() if microseconds} >= names
    assert costs["foreign_tasks"] == 0


async def test_drain(deployment: Deployment) -> None:
    report = await deployment.bench("drain", "--tasks", "3000", "--warm-up-tasks", "1000")
    assert report["statuses"] == {"COMPLETED": 3_000}
    assert report["with_result"] == 3_000
    assert report["per_second"] == pytest.approx(3_000 / report["seconds"], rel=0.01)
    assert sum(each["tasks"] for each in report["timeline"]) == 3_000
    check_costs(report["submission_costs"], {"gateway", "postgres", "load generator"})
    check_costs(report["costs"], {"relay", "worker", "postgres"})
    [(least, most)] = await deployment.service.database.fetch(
        """SELECT extract(epoch FROM min(finished_at - due_at))::float8,
                  extract(epoch FROM max(finished_at - due_at))::float8
           FROM tasks WHERE due_at IS NOT NULL AND id IN (
               SELECT task_id FROM payloads WHERE tags = ARRAY[$1::text])""",
        [report["setup"]["tag"]],
    )
    assert (report["first_end_seconds"], report["seconds"]) == pytest.approx((least, most), abs=0.002)
    assert least > 0


async def test_accept(deployment: Deployment, tmp_path: Path) -> None:
    plot = tmp_path / "accept.svg"
    short = ("--seconds", "1", "--connections", "8", "--warm-up-seconds", "0.2")
    for batch in (1, 20):
        report = await deployment.bench("accept", *short, "--batch", str(batch), "--plot", str(plot))
        assert report["answers"] == {"201": report["written"] // batch}
        assert 0 < report["accepted"] < report["written"]
        check_costs(report["costs"], {"gateway", "postgres", "load generator"})
    assert plot.read_text().endswith("</svg>\n")
    await deployment.service.all_ended(sum((await deployment.service.counts()).values()))


async def test_latency(deployment: Deployment) -> None:
    report = await deployment.bench("latency", "--tasks", "30", "--warm-up-tasks", "3")
    assert report["statuses"] == {"COMPLETED": 30}
    assert report["latency"]["count"] == 30
    assert 0 < report["latency"]["p50_ms"] <= report["latency"]["p99_ms"] <= report["latency"]["max_ms"]
    check_costs(report["costs"], set())


async def test_mixed(deployment: Deployment) -> None:
    report = await deployment.bench("mixed", "--rate", "50", "--seconds", "2", "--warm-up-seconds", "0.5")
    assert (report["written"], report["requests"], report["accepted"]) == (125, 100, 100)
    assert report["statuses"] == {"COMPLETED": 100}
    assert 0 < report["latency"]["p50_ms"] <= report["latency"]["p99_ms"] <= report["latency"]["max_ms"]
    assert report["clock_uncertainty_ms"] > 0
    check_costs(report["costs"], set())


async def test_a_foreign_database_is_noticed(deployment: Deployment) -> None:
    environment = deployment.service.environment
    url = str(deployment.service.client.base_url)
    async with deployment.postgres.database() as other:
        await migrated(other)
        environment["POSTGRES_DB"] = other.database
        ended = await bench(environment, deployment.folder, "latency", "--url", url)
    assert ended.exit_code == 2
    assert "does not write to the database of the settings" in ended.stderr


async def test_the_embedded_default_is_measured_too(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = Process(
            await asyncio.create_subprocess_exec(
                *(BATON, "run", "--embedded"),
                cwd=tmp_path,
                env={**PATH, "PORT": "0", "PYTHONUNBUFFERED": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            ),
            tmp_path / "log",
        )
    try:

        def url() -> str:
            assert process.process.returncode is None, process.text()
            told = re.search(r"--url (\S+)", process.text())
            return told[1] if told else ""

        arguments = ("latency", "--tasks", "3", "--warm-up-tasks", "0", "--embedded")
        where = await eventually(url, seconds=60)
        ended = await bench(PATH, tmp_path, *arguments, "--url", where)
        assert ended.exit_code == 0, ended
        assert "3 COMPLETED" in ended.stdout
        assert await process.stop() == 0
    finally:
        await process.kill()
