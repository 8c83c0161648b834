"""What is handed over in every measurement, to us and to the peers: 200 bytes with which nothing is done."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from gateway.ids import Ids
from storage.ledger import PostgresLedger
from storage.model import Priority, Submission
from tests.support.ledgers import address_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.support.servers import Database

PAYLOAD = {"to": "user@example.com", "a": 1, "text": "x" * 150}
TASK: Mapping[str, object] = {"kind": "echo", "payload": PAYLOAD}
BATCH = 1000
TASKS_PATH, BATCH_PATH = "/api/v1/tasks", "/api/v1/tasks/batch"

FILL_SECONDS = 60.0


def body_of(task: Mapping[str, object] = TASK) -> bytes:
    """Write the body of POST /tasks."""
    return msgspec.json.encode(task)


def body_of_batch(tasks: int = BATCH) -> bytes:
    """Write the body of POST /tasks/batch."""
    return msgspec.json.encode({"tasks": [TASK] * tasks})


def submissions(
    tasks: int,
    ids: Ids,
    *,
    kind: str = "echo",
    payload: object = PAYLOAD,
    priority: Priority = Priority.MEDIUM,
) -> list[Submission]:
    """Make what the gateway hands to the ledger."""
    text = msgspec.json.encode(payload).decode()
    return [
        Submission(
            id=ids.new(), kind=kind, payload=text, priority=priority, max_retries=3, timeout_seconds=300.0
        )
        for _ in range(tasks)
    ]


async def preload(
    database: Database,
    tasks: int,
    *,
    kind: str = "echo",
    payload: object = PAYLOAD,
    priority: Priority = Priority.MEDIUM,
) -> Sequence[UUID]:
    """Hand tasks over by the ledger's own statement while nobody works; their ids."""
    ids, made = Ids(), list[UUID]()
    async with PostgresLedger(address_of(database), timeout_seconds=FILL_SECONDS) as ledger:
        for start in range(0, tasks, BATCH):
            group = submissions(min(BATCH, tasks - start), ids, kind=kind, payload=payload, priority=priority)
            await ledger.submissions.submit(group)
            made += [submission.id for submission in group]
    return made
