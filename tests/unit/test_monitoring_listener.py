"""The port for operators, on a real socket of the loopback."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pipeline.http_server import PortTaken
from pipeline.monitoring import Metrics, Progress
from pipeline.monitoring.listener import listening
from pipeline.settings import Role, Settings
from pipeline.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JANITOR = Settings(role=frozenset({Role.JANITOR}))


@pytest.fixture
def progress() -> Progress:
    return Progress(ManualClock())


@pytest.fixture
async def client(progress: Progress) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        listening(JANITOR, Metrics(JANITOR.role), progress) as url,
        httpx.AsyncClient(base_url=url) as opened,
    ):
        yield opened


async def test_metrics_are_in_the_text_format(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "\nbaton_runs_rescued_total 0.0\n" in response.text
    assert "\nprocess_resident_memory_bytes " in response.text
    assert "_created" not in response.text


async def test_a_process_is_live_before_it_is_ready(client: httpx.AsyncClient, progress: Progress) -> None:
    assert (await client.get("/health/live")).status_code == 200
    behind = await client.get("/health/ready")
    progress.rescued.happened()
    ready = await client.get("/health/ready")
    check = {"role": "janitor", "check": "rescue", "limit_seconds": 20.0, "error": ""}
    assert (behind.status_code, ready.status_code) == (503, 200)
    assert behind.json() == {"ready": False, "checks": [check | {"ok": False, "age_seconds": None}]}
    assert ready.json() == {"ready": True, "checks": [check | {"ok": True, "age_seconds": 0.0}]}


async def test_another_path_is_told_which_there_are(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 404
    assert "/health/ready" in response.text


async def test_a_taken_port_is_told_by_the_setting_to_change(progress: Progress) -> None:
    async with listening(JANITOR, Metrics(), progress) as url:
        taken = Settings(metrics_port=int(url.rpartition(":")[2]))
        with pytest.raises(PortTaken, match="set METRICS_PORT to a free one"):
            await listening(taken, Metrics(), progress).__aenter__()


async def test_nobody_who_looks_keeps_the_process_from_ending(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.monitoring.health.DATABASE_SECONDS", 60.0)
    asked = asyncio.Event()

    async def hang() -> None:
        asked.set()
        await asyncio.Event().wait()

    progress.ask_database = hang
    asking = Settings(role=frozenset({Role.GATEWAY}))
    async with httpx.AsyncClient() as client, listening(asking, Metrics(), progress) as url:
        await client.get(f"{url}/health/live")  # the connection stays open
        looking = asyncio.create_task(client.get(f"{url}/health/ready"))
        await asked.wait()
        ended_at = time.monotonic()
    assert time.monotonic() - ended_at < 5.0
    looking.cancel()
    await asyncio.wait({looking})
