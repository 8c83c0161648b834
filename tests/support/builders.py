"""Values that tests need by the dozen; each builder takes the fields that matter to the test."""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from msgspec.structs import replace

from pipeline.broker.topology import retry_route
from storage.model import (
    Cancelled,
    Dead,
    Done,
    Failure,
    Heartbeat,
    Interrupted,
    Priority,
    Reason,
    Reference,
    Retry,
    Run,
    Status,
    Submission,
)

if TYPE_CHECKING:
    from storage.model import Verdict

_counter = itertools.count()


def task_id(age_seconds: float = 0.0) -> UUID:
    """A UUIDv7 (RFC 9562) of the present time or earlier; of the same age, later ones sort higher."""
    milliseconds = int((time.time() - age_seconds) * 1000)
    tail = next(_counter) << 32 | random.getrandbits(32)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | tail)


def submission(**changes: Any) -> Submission:
    default = Submission(id=task_id(), kind="echo", payload='{"n": 1}', max_retries=3, timeout_seconds=30.0)
    return replace(default, **changes)


def run(**changes: Any) -> Run:
    default = Run(
        reference=Reference(changes.pop("task_id", None) or task_id(), changes.pop("dispatch", 1)),
        kind="echo",
        payload=b'{"n": 1}',
        priority=Priority.MEDIUM,
        attempt=1,
        max_retries=3,
        timeout_seconds=30.0,
    )
    return replace(default, **changes)


def failure(message: str = "boom", reason: Reason = Reason.ERROR) -> Failure:
    return Failure("ValueError", message, reason)


def done(of: Run, result: str = "null") -> Done:
    return Done(of, result)


def retry(of: Run, delay_seconds: int = 30, **changes: Any) -> Retry:
    """A retry by way of the queue of its delay."""
    return replace(Retry(of, failure(), retry_route(of.priority, delay_seconds), delay_seconds), **changes)


def dead(of: Run, message: str = "boom", reason: Reason = Reason.ERROR) -> Dead:
    return Dead(of, failure(message, reason))


def cancelled(of: Run) -> Cancelled:
    return Cancelled(of)


def interrupted(of: Run) -> Interrupted:
    return Interrupted(of)


def ending(of: Run, status: Status) -> Verdict:
    """The verdict that leads to a terminal status."""
    ways: dict[Status, Verdict] = {
        Status.COMPLETED: done(of),
        Status.FAILED: dead(of),
        Status.CANCELLED: cancelled(of),
    }
    return ways[status]


def every_verdict(of: Run) -> list[Verdict]:
    return [done(of), retry(of), dead(of), cancelled(of), interrupted(of)]


def beat(worker_id: UUID | None = None, **changes: Any) -> Heartbeat:
    default = Heartbeat(
        worker_id=worker_id or uuid4(),
        slots=8,
        running=0,
        free=8,
        unclaimed=0,
        queues=("tasks.high", "tasks.medium", "tasks.low"),
    )
    return replace(default, **changes)
