"""`baton run --embedded`, as a newcomer runs it, interrupts it, and kills it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.service import BATON, HANDLERS
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SLOTS = "10"


class Default:
    """The embedded default in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "baton.log"
        self.process: asyncio.subprocess.Process

    async def start(self, **environment: str) -> None:
        """Start in a session of its own, as a shell would start a job."""
        effects = self.folder / "effects"
        effects.touch()
        ours = {"HANDLERS": HANDLERS, "EFFECTS": str(effects), "PORT": "0", "LOG_FORMAT": "json"}
        with self.log.open("wb") as output:
            self.process = await asyncio.create_subprocess_exec(
                BATON,
                "run",
                "--embedded",
                cwd=self.folder,
                env={**os.environ, **ours, "PYTHONPATH": os.getcwd(), **environment},  # noqa: PTH109 - a text
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def starts(self, task: dict[str, Any]) -> list[float]:
        """Tell when each run of a task has started, by a clock that survives restarts."""
        lines = [line.split() for line in (self.folder / "effects").read_text().splitlines()]
        return [float(at) for task_id, _, _, at, _ in lines if task_id == task["id"]]

    async def url(self) -> str:
        """Wait until the gateway listens."""

        def listening() -> str:
            assert self.process.returncode is None, self.log.read_text()
            lines = [line for line in self.log.read_text().splitlines() if '"listening"' in line]
            return lines[0].split('"url":')[1].split('"')[1] if lines else ""

        return await eventually(listening, seconds=60)

    async def ended(self, seconds: float = 30) -> int:
        """Wait for the end of the process; its exit code."""
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    def postgres(self) -> list[int]:
        """List what still runs below the data folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self.folder).encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found


@asynccontextmanager
async def client_of(default: Default) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=await default.url(), timeout=30) as client:
        yield client


async def submit(
    client: httpx.AsyncClient, payload: Any, kind: str = "work.do", wait: int = 0, **fields: Any
) -> dict[str, Any]:
    answer = await client.post(
        "/api/v1/tasks", params={"wait": wait}, json={"kind": kind, "payload": payload, **fields}
    )
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


@pytest.fixture
async def default(tmp_path: Path) -> AsyncIterator[Default]:
    one = Default(tmp_path)
    yield one
    if one.process.returncode is None:
        one.process.kill()
        await one.process.wait()
    await eventually(lambda: not one.postgres(), seconds=20)


async def test_it_carries_on_after_kill_9(default: Default) -> None:
    await default.start(RETRY_DELAYS_SECONDS="5", WORKER_CONCURRENCY=SLOTS)
    async with client_of(default) as client:
        retried = await submit(client, {}, kind="work.fail", max_retries=1)
        tasks = [await submit(client, {"seconds": 1}) for _ in range(30)]

        async def failed_once() -> bool:
            answer = await client.get(f"/api/v1/tasks/{retried['id']}")
            return (answer.json()["status"], answer.json()["attempt"]) == ("PENDING", 2)

        await eventually(failed_once)
        default.process.kill()
        await default.ended()
    running = [task["id"] for task in tasks if default.starts(task)]
    await default.start(RETRY_DELAYS_SECONDS="5")
    async with client_of(default) as client:

        async def ended(task: dict[str, Any]) -> dict[str, Any]:
            answer = await client.get(f"/api/v1/tasks/{task['id']}", params={"wait": 30})
            assert answer.json()["finished_at"], answer.text
            shown: dict[str, Any] = answer.json()
            return shown

        over = [await ended(task) for task in tasks]
        assert {task["status"] for task in over} == {"COMPLETED"}
        lost = [task["id"] for task in over if task["losses"]]
        assert 0 < len(lost) <= int(SLOTS)
        assert len(running) < len(tasks), "nothing waited when it was killed"
        assert ((await ended(retried))["status"], (await ended(retried))["attempt"]) == ("FAILED", 2)
    first, second = default.starts(retried)
    assert second - first >= 5
    # The start itself sends again what waited and rescues what ran; the janitor would need a lease for it.
    events = [json.loads(line)["event"] for line in default.log.read_text().splitlines()]
    assert "carrying on" in events
    assert not {"sent again", "rescued"} & set(events)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [True, False])
async def test_a_signal_drains_it_and_leaves_no_postgres(
    default: Default, number: signal.Signals, *, group: bool
) -> None:
    await default.start()
    async with client_of(default) as client:
        running = await submit(client, {"seconds": 1})
        await eventually(lambda: default.starts(running))
        (os.killpg if group else os.kill)(default.process.pid, number)
        assert await default.ended() == 0
    assert default.postgres() == []
    await default.start()
    async with client_of(default) as client:
        answer = await client.get(f"/api/v1/tasks/{running['id']}", params={"wait": 20})
        assert (answer.json()["status"], answer.json()["dispatch"]) == ("COMPLETED", 1)


async def test_a_second_start_says_who_holds_the_folder(default: Default) -> None:
    await default.start()
    await default.url()
    second = Default(default.folder)
    second.log = default.folder / "second.log"
    await second.start()
    assert await second.ended() != 0
    assert str(default.process.pid) in second.log.read_text()


async def test_a_taken_port_is_named(default: Default, tmp_path_factory: pytest.TempPathFactory) -> None:
    await default.start()
    port = (await default.url()).rpartition(":")[2]
    second = Default(tmp_path_factory.mktemp("second"))
    await second.start(PORT=port)
    assert await second.ended() != 0
    assert f"127.0.0.1:{port}" in second.log.read_text()
    assert second.postgres() == []


async def test_a_env_file_made_for_compose_is_ignored_and_it_says_so(default: Default) -> None:
    (default.folder / ".env").write_text(
        "POSTGRES_HOST=postgres\nRABBITMQ_URL=amqp://guest:guest@rabbitmq:5672/\n"
    )
    await default.start()
    async with client_of(default) as client:
        assert (await submit(client, {}, wait=20))["status"] == "COMPLETED"
    assert ".env" in default.log.read_text()
