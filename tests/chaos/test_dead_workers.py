"""A worker's death shows by its connection, long before its lease is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.service import Service

LEASE_SECONDS = "300"


@pytest.mark.parametrize("kind", ["work.do", "work.thread", "work.process"])
async def test_what_a_killed_worker_ran_runs_again_long_before_its_lease_is_over(
    deployed: Service, kind: str
) -> None:
    doomed = await deployed.start("worker", WORKER_LEASE_SECONDS=LEASE_SECONDS)
    await deployed.start("gateway,relay,janitor", WORKER_LEASE_SECONDS=LEASE_SECONDS)
    task = await deployed.submit(kind, {"seconds": 2})
    await eventually(lambda: deployed.starts(task), seconds=30)
    await doomed.kill()
    await deployed.start("worker", WORKER_LEASE_SECONDS=LEASE_SECONDS)
    await eventually(lambda: len(deployed.starts(task)) == 2, seconds=60)
    ended = await deployed.ended(task)
    assert (ended["status"], ended["dispatch"], ended["losses"]) == ("COMPLETED", 2, 1)
    [janitor] = deployed.processes("gateway")
    assert janitor.text().count("worker declared dead") == 1
    await deployed.check()
