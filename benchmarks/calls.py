"""Calls of the service, by the load generator of `baton bench`; times are by this machine's clock.

PostgreSQL runs on the same machine, so that its times and these can be compared.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID  # noqa: TC003 - msgspec resolves the annotation at run time

import msgspec

from benchmarks.observer import NotAsPromised
from pipeline.bench.http import API, Target
from pipeline.bench.load import ClosedLoop, OpenLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pipeline.bench.load import Exchange

CONNECTIONS = 64
ANSWER_SECONDS = 60.0
LONGEST_SECONDS = 3600.0
OK, CREATED = 200, 201


class Answer(NamedTuple):
    """A call that has ended, and the body that came; the status is None where nothing came."""

    due_at: float
    sent_at: float
    ended_at: float
    status: int | None
    body: bytes


class Posted(NamedTuple):
    """A task that was accepted."""

    task_id: UUID
    due_at: float
    answered_at: float


class _Accepted(msgspec.Struct):
    id: UUID


_accepted = msgspec.json.Decoder(_Accepted)


async def post_steadily(url: str, body: bytes, per_second: float, seconds: float) -> list[Posted]:
    """Post a task at a rate, in an open loop; raises NotAsPromised where one was not accepted."""
    answers: list[Answer] = []
    target = Target.of(url)
    async with OpenLoop(target, CONNECTIONS, _keep_in(answers), clock=time.time) as load:
        with _nothing_collected():
            load.start(target.post("/tasks", body), per_second, round(per_second * seconds))
            await load.quiet(seconds + ANSWER_SECONDS)
    check(answers, round(per_second * seconds), CREATED)
    return [Posted(_accepted.decode(each.body).id, each.due_at, each.ended_at) for each in answers]


async def one_by_one(url: str, requests: Iterable[bytes]) -> list[Answer]:
    """Call on one connection, each after the answer to the last."""
    answers: list[Answer] = []
    async with ClosedLoop(Target.of(url), 1, _keep_in(answers), clock=time.time) as load:
        with _nothing_collected():
            load.start(iter(requests))
            await load.quiet(LONGEST_SECONDS)
    return answers


def get(url: str, path: str) -> bytes:
    """Write a GET as it goes over the wire; `path` is below `/api/v1`."""
    target = Target.of(url)
    return f"GET {API}{path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n\r\n".encode()


def check(answers: Sequence[Answer], calls: int, status: int) -> None:
    """Check that every call was answered, and with that status; raises NotAsPromised."""
    others = [each for each in answers if each.status != status]
    if others or len(answers) != calls:
        raise NotAsPromised(
            f"of {calls} calls {len(answers)} ended, {len(others)} otherwise than by {status}: {others[:1]}"
        )


def _keep_in(answers: list[Answer]) -> Callable[[Exchange, bytes], None]:
    return lambda exchange, body: answers.append(Answer(*exchange, body))


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep the collector from looking through all answers, which would make later calls late."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
