"""Machines whose clocks are an hour off: everything happens when the database says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from tests.support.faketime import wall_clock_off_by
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.service import Process, Service

HOUR_SECONDS = 3600.0
HALF_AN_HOUR = "1800"
EXPIRED = """INSERT INTO idempotency_keys (tenant, key, fingerprint, task_ids, created_at)
             VALUES ('', 'old', '', '{}', now() - interval '31 minutes') RETURNING 1"""
KEYS = "SELECT key FROM idempotency_keys"


def ahead_seconds(process: Process) -> float:
    """Tell how far the clock of a process is ahead, by the first line of its log."""
    told = datetime.fromisoformat(json.loads(process.text().splitlines()[0])["timestamp"])
    return (told - datetime.now(UTC)).total_seconds()


def between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


async def test_clocks_that_are_an_hour_off_move_nothing(deployed: Service) -> None:
    ahead, behind = wall_clock_off_by(HOUR_SECONDS), wall_clock_off_by(-HOUR_SECONDS)
    workers = [await deployed.start("worker", **ahead), await deployed.start("worker", **behind)]
    relays = [await deployed.start("relay", **behind), await deployed.start("relay", **ahead)]
    await deployed.start("gateway", **behind)
    key = {"Idempotency-Key": "new"}
    first = await deployed.client.post("/api/v1/tasks", json={"kind": "work.do"}, headers=key)

    run_at = (datetime.now(UTC) + timedelta(seconds=2.0)).isoformat()
    dated, delayed, later, failing = [
        await deployed.submit("work.do", {}, run_at=run_at),
        await deployed.submit("work.do", {}, delay_seconds=2.0),
        await deployed.submit("work.later", {"seconds": 2.0}),
        await deployed.submit("fail", {"until_attempt": 2}),
    ]
    ended = [await deployed.ended(task) for task in (dated, delayed, later, failing)]
    assert [task["status"] for task in ended] == ["COMPLETED"] * 4
    assert 0.0 <= between(run_at, ended[0]["started_at"]) < 20.0
    assert 2.0 <= between(delayed["created_at"], ended[1]["started_at"]) < 20.0
    assert 2.0 <= between(later["created_at"], ended[2]["started_at"]) < 20.0
    assert 1.0 <= between(ended[3]["errors"][0]["at"], ended[3]["started_at"]) < 20.0
    # The time within an id is the database's.
    milliseconds = UUID(dated["id"]).int >> 80
    assert abs(milliseconds / 1000 - datetime.fromisoformat(dated["created_at"]).timestamp()) < 20.0

    # The janitor's clock says that all of this is old.
    await deployed.database.fetch(EXPIRED)
    age = {"RETENTION_SECONDS": HALF_AN_HOUR, "IDEMPOTENCY_TTL_SECONDS": HALF_AN_HOUR}
    janitor = await deployed.start("dead-letter,janitor", **ahead, **age)

    async def pruned() -> bool:
        return await deployed.database.fetch(KEYS) == [("new",)]

    await eventually(pruned, seconds=30)
    repeat = await deployed.client.post("/api/v1/tasks", json={"kind": "work.do"}, headers=key)
    assert (repeat.json()["id"], repeat.headers["idempotency-replayed"]) == (first.json()["id"], "true")

    # And that no worker lives; those do that beat.
    running = [await deployed.submit("work.do", {"seconds": 5.0}) for _ in range(10)]
    assert [(await deployed.ended(task))["dispatch"] for task in running] == [1] * 10
    assert "declared dead" not in janitor.text()
    await deployed.check()
    assert [round(ahead_seconds(one) / HOUR_SECONDS) for one in (*workers, *relays)] == [1, -1, -1, 1]


async def test_who_dies_with_a_clock_that_is_ahead_is_missed_at_once(deployed: Service) -> None:
    doomed = await deployed.start("worker", **wall_clock_off_by(HOUR_SECONDS))
    await deployed.start("gateway,relay,janitor", **wall_clock_off_by(-HOUR_SECONDS))
    task = await deployed.submit("work.gated", {})
    await eventually(lambda: deployed.starts(task), seconds=30)
    await doomed.kill()
    await deployed.start("worker", **wall_clock_off_by(-HOUR_SECONDS))
    deployed.open_gate(2)
    ended = await deployed.ended(task)
    assert (ended["status"], ended["dispatch"], ended["losses"]) == ("COMPLETED", 2, 1)
    await deployed.check()
