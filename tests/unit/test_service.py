"""What a process says while it starts."""

from __future__ import annotations

import asyncio

import structlog

from pipeline.service import serve
from pipeline.settings import Role, Settings
from tests.support.waiting import eventually

NOBODY = 1  # a port where nothing listens


async def test_the_database_that_it_waits_for_is_named_once_and_without_the_password() -> None:
    settings = Settings(
        role=frozenset({Role.RELAY}),
        postgres_port=NOBODY,
        postgres_password="sesame",
        rabbitmq_url=f"amqp://guest:guest@127.0.0.1:{NOBODY}/",
    )
    stop = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(serve(settings, lambda *_: None, stop))
        await eventually(lambda: "waiting for the database" in [line["event"] for line in logs])
        stop.set()
        await running
    assert [line["event"] for line in logs] == ["answering operators", "waiting for the database", "stopped"]
    assert logs[1]["server"] == f"baton@127.0.0.1:{NOBODY}/baton"
    assert "sesame" not in str(logs)
