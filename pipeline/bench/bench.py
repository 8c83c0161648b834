"""One measurement of one deployment: what it submits, how it waits, and how it tells time."""

from __future__ import annotations

import asyncio
import random
import string
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import msgspec

from pipeline.bench.costs import Bookkeeper
from pipeline.bench.ports import unwatched
from pipeline.bench.report import Setup
from storage.model import Priority

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from pipeline.bench.costs import Processes
    from pipeline.bench.http import Target
    from pipeline.bench.load import Load
    from pipeline.bench.ports import Measurements, Progress
    from storage.measurements import End

NAME = "baton bench"
BATCH, BATCH_BYTES = 1_000, 4 << 20
TASK_BYTES = 512  # what surrounds a payload, generously
LOOK_SECONDS = 0.25
ANSWER_SECONDS = 75.0  # `?wait=60` and what the gateway needs besides
STOP_SECONDS = 3.0
CLOCK_SAMPLES = 20
SMALLEST_PAYLOAD_BYTES = len('{"text":""}')


class CannotMeasure(Exception):
    """The measurement cannot go on; the message says why, and what is in the ledger."""


class Work(msgspec.Struct, frozen=True):
    """What each task is; `payload` is JSON."""

    kind: str
    payload: bytes
    priority: Priority

    @classmethod
    def of_size(cls, payload_bytes: int = 200, kind: str = "echo", priority: Priority = Priority.LOW) -> Work:
        """Make a payload of this many bytes, SMALLEST_PAYLOAD_BYTES at least, that hardly compresses."""
        chance = random.Random(0)  # noqa: S311 - keeps no secret
        letters = chance.choices(string.ascii_letters, k=payload_bytes - SMALLEST_PAYLOAD_BYTES)
        return cls(kind, msgspec.json.encode({"text": "".join(letters)}), priority)

    def task(self, tag: str, **fields: object) -> dict[str, Any]:
        """Describe such a task as the API takes it."""
        return {
            "kind": self.kind,
            "payload": msgspec.Raw(self.payload),
            "priority": self.priority.name,
            "name": NAME,
            "tags": [tag],
            **fields,
        }

    @property
    def most_in_batch(self) -> int:
        """How many of these tasks the API takes in one request, for their number and their size."""
        return max(1, min(BATCH, BATCH_BYTES // (len(self.payload) + TASK_BYTES)))


def new_tag() -> str:
    """Make the tag of one measurement's tasks."""
    return f"bench-{uuid4().hex[:12]}"


class Offset(NamedTuple):
    """How far the database's clock is ahead of `time.perf_counter`, give or take."""

    seconds: float
    uncertainty_seconds: float

    def agreed(self, other: Offset) -> Offset:
        """Take the more certain of two; clocks that have drifted apart are as uncertain as they differ."""
        better = min(self, other, key=lambda each: each.uncertainty_seconds)
        apart_seconds = abs(self.seconds - other.seconds)
        return Offset(better.seconds, max(better.uncertainty_seconds, apart_seconds))


async def compare_clocks(measurements: Measurements) -> Offset:
    """Measure the offset by the answer with the shortest round trip, uncertain by half of it."""
    found = []
    for _ in range(CLOCK_SAMPLES):
        asked_at = time.perf_counter()
        there = await measurements.clock_seconds()
        answered_at = time.perf_counter()
        found.append(Offset(there - (asked_at + answered_at) / 2, (answered_at - asked_at) / 2))
    return min(found, key=lambda offset: offset.uncertainty_seconds)


class Bench:
    """One measurement of one deployment: where it is, what its tasks are, and who watches.

    `processes` names those whose processor time is read. `patience_seconds` is how long tasks may all stand
    still before they are no longer waited for.
    """

    def __init__(
        self,
        target: Target,
        measurements: Measurements,
        work: Work,
        *,
        processes: Mapping[str, int] | None = None,
        progress: Progress = unwatched,
        stop: asyncio.Event | None = None,
        patience_seconds: float = 120.0,
        proc: Processes | None = None,
        tag: str | None = None,
    ) -> None:
        self.tag = tag or new_tag()
        self.target = target
        self.measurements = measurements
        self.progress = progress
        self.stop = stop or asyncio.Event()
        self.books = Bookkeeper(measurements, processes or {}, proc, self._pause)
        self.started_at = datetime.now(UTC)
        self._work = work
        self._patience_seconds = patience_seconds

    def one(self, query: str = "") -> bytes:
        """Write the request for one task."""
        return self.target.post(f"/tasks{query}", msgspec.json.encode(self._work.task(self.tag)))

    def many(self, tasks: int, **fields: object) -> bytes:
        """Write the request for a batch."""
        body = msgspec.json.encode({"tasks": [self._work.task(self.tag, **fields)] * tasks})
        return self.target.post("/tasks/batch", body)

    @property
    def most_in_batch(self) -> int:
        """How many of these tasks a batch holds at most."""
        return self._work.most_in_batch

    async def setup(self) -> Setup:
        """Say what is measured."""
        server = await self.measurements.server()
        return Setup(
            version=version("baton-tasks"),
            started_at=self.started_at.isoformat(timespec="seconds"),
            url=repr(self.target),
            database=server.database,
            postgres=server.version,
            fsync=server.fsync,
            full_page_writes=server.full_page_writes,
            tag=self.tag,
            kind=self._work.kind,
            payload_bytes=len(self._work.payload),
            priority=self._work.priority.name,
        )

    async def run(self, load: Load, stage: str, seconds: float) -> None:
        """Let a load run for so long, until it is through, or until the measurement is to stop."""
        ends_at = time.perf_counter() + seconds
        while not self.stop.is_set():
            left_seconds = ends_at - time.perf_counter()
            self.progress(stage, seconds - max(0.0, left_seconds), seconds)
            if left_seconds <= 0 or await load.quiet(min(LOOK_SECONDS, left_seconds)):
                return

    async def through(self, load: Load) -> None:
        """Let a load send what it has left, and be answered.

        Nothing more is sent where the measurement is to stop, and where no answer comes for long it is over.
        """
        moved_at, answered = time.monotonic(), load.answers
        while not await load.quiet(LOOK_SECONDS):
            if self.stop.is_set():
                load.halt()
            if load.answers != answered:
                moved_at, answered = time.monotonic(), load.answers
            elif time.monotonic() - moved_at > (STOP_SECONDS if self.stop.is_set() else ANSWER_SECONDS):
                load.halt()
                return

    async def wait(self, seconds: float, stage: str) -> None:
        """Wait, unless the measurement is to stop."""
        ends_at = time.monotonic() + seconds
        while not self.stop.is_set() and (left_seconds := ends_at - time.monotonic()) > 0:
            self.progress(stage, seconds - left_seconds, seconds)
            await self._pause(min(LOOK_SECONDS, left_seconds))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop.wait()

    async def ended(self, task_ids: Sequence[UUID], stage: str) -> None:
        """Return when all have ended, when none does any more, or when the measurement is to stop.

        Asked is for the first thousand that have not: one pass over the tasks in all, however long it takes.
        """
        moved_at = time.monotonic()
        for done in range(0, len(task_ids), BATCH):
            self.progress(stage, done, len(task_ids))
            while await self.measurements.running(task_ids[done : done + BATCH]):
                await self._pause(LOOK_SECONDS)
                if self.stop.is_set() or time.monotonic() - moved_at > self._patience_seconds:
                    return
            moved_at = time.monotonic()
        self.progress(stage, len(task_ids), len(task_ids))

    async def ends(self, task_ids: Sequence[UUID]) -> dict[UUID, End]:
        """Tell where all are."""
        found: dict[UUID, End] = {}
        for start in range(0, len(task_ids), BATCH):
            found |= await self.measurements.ends(task_ids[start : start + BATCH])
        return found
