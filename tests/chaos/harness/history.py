"""The history of a run: its events, each change of the database, the effects, and what was at its end."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from tests.chaos.harness.events import AnyEvent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class TaskChange(msgspec.Struct, frozen=True, array_like=True):
    """One change of a row of `tasks`, by trigger; `old_` fields are None at its creation.

    Of one task they are in order: `number` is drawn while the row is locked. `at` is on the scale of
    Event.at; `due_seconds` is how long after this change the task is due (None or negative: at once).
    """

    number: int
    at: float
    task: str
    old_status: int | None
    status: int
    old_dispatch: int | None
    dispatch: int
    attempt: int
    losses: int
    postponements: int
    replay: int
    worker: str | None
    cancel_requested: bool
    reason: str | None
    due_seconds: float | None


class OutboxChange(msgspec.Struct, frozen=True, array_like=True):
    """One change of a row of `outbox`, by trigger: INSERT, UPDATE or DELETE (then as it was before)."""

    number: int
    at: float
    operation: str
    row: int
    task: str
    dispatch: int
    route: str
    status: int
    attempts: int
    due_seconds: float


class Effect(msgspec.Struct, frozen=True, array_like=True):
    """What a handler left in a store of its own: "start" and, if it came so far, "end"."""

    what: str
    task: str
    dispatch: int
    attempt: int
    idempotency_key: str
    at: float
    pid: int


class FinalTask(msgspec.Struct, frozen=True, array_like=True):
    """A task as the database has it at the end."""

    id: str
    name: str
    kind: str
    status: int
    dispatch: int
    attempt: int
    losses: int
    replay: int
    max_retries: int
    cancel_requested: bool
    worker: str | None
    reason: str | None
    errors: int
    result: str | None


class Final(msgspec.Struct, frozen=True, kw_only=True):
    """The database and the broker at the end."""

    tasks: list[FinalTask]
    outbox: list[tuple[int, str, int, str, int]]
    """Row id, task, dispatch, route, status."""
    dead_letters: list[tuple[str | None, int | None, str]]
    """Task, dispatch, reason."""
    keys: list[tuple[str, list[str]]]
    """Idempotency key, ids of its tasks."""
    payloads_without_task: int
    idle_in_transaction: int
    queues: dict[str, tuple[int, int]]
    """Ready and unacknowledged messages by queue."""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to check: `events` by time, those of one `by` in their order."""

    seed: int
    events: list[AnyEvent]
    tasks: list[TaskChange]
    outbox: list[OutboxChange]
    effects: list[Effect]
    final: Final


class Log:
    """Appends events to a file; each line is whole, whenever its process dies."""

    def __init__(self, path: Path, by: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._encoder = msgspec.json.Encoder()
        self.by = by

    def write(self, event: AnyEvent) -> None:
        """Append one event."""
        os.write(self._file, self._encoder.encode(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def now() -> float:
    """Tell the time of all events."""
    return time.monotonic()


def read_events(folder: Path) -> list[AnyEvent]:
    """Read the files of all processes, by time; the sort keeps the order within each."""
    decoder = msgspec.json.Decoder(AnyEvent)
    events = [decoder.decode(line) for file in sorted(folder.glob("*.events")) for line in _lines(file)]
    return sorted(events, key=lambda event: event.at)


def read_effects(file: Path) -> list[Effect]:
    """Read what the handlers left."""
    decoder = msgspec.json.Decoder(Effect)
    return [decoder.decode(line) for line in _lines(file)]


def _lines(file: Path) -> Iterator[bytes]:
    return iter(file.read_bytes().splitlines()) if file.exists() else iter(())
