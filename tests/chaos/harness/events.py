"""The events of a run, as programs, clients and the nemesis write them down while they happen.

Each appends lines to a file of its own. Times are seconds of CLOCK_MONOTONIC, which all processes of one
machine share and which no change of a wall clock moves. What the database did is written by triggers, in the
very transactions that did it (`changes.py`), by its own clock, which Clock events bring to the same scale.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Ref = tuple[str, int]
"""A reference: the id of a task, and the dispatch."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="event"):
    """`by` is the process and its incarnation ("relay-1.3"), "client", "nemesis" or "harness".

    Events of one `by` are in the order in which they happened. An event with `began` tells of a call that
    began then and was answered `at`; a call that failed or whose process died in it left none.
    """

    at: float
    by: str


# Programs.


class Polled(Event, frozen=True, kw_only=True):
    """The relay leased these outbox rows: row id, task, dispatch, route."""

    rows: list[tuple[int, str, int, str]]


class Published(Event, frozen=True, kw_only=True):
    """What the broker itself said of messages: route, references, and the name of a Publication."""

    began: float
    messages: list[tuple[str, list[Ref], str]]


class Settling(Event, frozen=True, kw_only=True):
    """The relay is about to delete these outbox rows, written before the call."""

    rows: list[int]


class Counted(Event, frozen=True, kw_only=True):
    """The relay counted an attempt of these rows, which no queue takes; `failed` of them are FAILED now."""

    rows: list[int]
    failed: list[int]


class Delivered(Event, frozen=True, kw_only=True):
    """A message came; `delivery` numbers it within `by`. Without references nobody can read it."""

    delivery: int
    queue: str
    references: list[Ref]


class Letting(Event, frozen=True, kw_only=True):
    """A delivery is about to be settled, written before the call."""

    delivery: int
    how: Literal["ack", "nack", "reject"]


class Claimed(Event, frozen=True, kw_only=True):
    """A claim was answered: what was asked for, and what of it was taken."""

    began: float
    worker: str
    asked: list[Ref]
    taken: list[Ref]


class HandedBack(Event, frozen=True, kw_only=True):
    """References were given back through the outbox."""

    began: float
    references: list[Ref]


class Recorded(Event, frozen=True, kw_only=True):
    """Verdicts were answered: task, dispatch, replay, verdict, the status it led to (None: refused)."""

    began: float
    verdicts: list[tuple[str, int, int, str, int | None]]


class Buried(Event, frozen=True, kw_only=True):
    """References found in the DLQ were decided over."""

    began: float
    references: list[Ref]


class Beaten(Event, frozen=True, kw_only=True):
    """A heartbeat was answered; not `alive` where the worker had been declared dead."""

    began: float
    worker: str
    alive: bool


class DeclaredDead(Event, frozen=True, kw_only=True):
    """The janitor looked for silent workers."""

    began: float
    workers: list[str]


class Rescued(Event, frozen=True, kw_only=True):
    """The janitor moved these runs: task, the dispatch that was lost, the status it led to."""

    runs: list[tuple[str, int, int]]


class Booted(Event, frozen=True, kw_only=True):
    """A program is about to run; its wall clock is so far ahead of the machine's."""

    pid: int
    wall_ahead_seconds: float


# Clients. `outcome` is ok (2xx), refused (a definite no: nothing was done) or unknown (no answer, or 5xx).

Outcome = Literal["ok", "refused", "unknown"]


class Submitted(Event, frozen=True, kw_only=True):
    """One POST of one task or of a batch; tasks are known by their unique `name` until there is an id.

    `expected` is COMPLETED or FAILED: what each becomes if nobody cancels it.
    """

    began: float
    names: list[str]
    kinds: list[str]
    expected: list[str]
    key: str | None
    outcome: Outcome
    status: int
    ids: list[str] = []
    repeated: bool = False
    """Answered with Idempotency-Replayed: the tasks of an earlier POST."""


class CancelAsked(Event, frozen=True, kw_only=True):
    """One DELETE of a task; `task_status` is the one in the answer."""

    began: float
    task: str
    outcome: Outcome
    status: int
    task_status: str | None = None


class ReplayAsked(Event, frozen=True, kw_only=True):
    """One POST of a replay, which names the dispatch it replays."""

    began: float
    task: str
    dispatch: int
    outcome: Outcome
    status: int


class Seen(Event, frozen=True, kw_only=True):
    """One GET of a task."""

    began: float
    task: str
    task_status: str
    dispatch: int
    replay: int


# The harness and its nemesis.


class Clock(Event, frozen=True, kw_only=True):
    """The database's clock, in seconds since 1970, at `at`."""

    database_seconds: float


class Started(Event, frozen=True, kw_only=True):
    """A program was started by the harness: its name, incarnation and process."""

    program: str
    pid: int


class Exited(Event, frozen=True, kw_only=True):
    """A program ended; a negative code is a signal. `wanted` where the harness had asked it to."""

    program: str
    pid: int
    code: int
    wanted: bool


class FaultBegan(Event, frozen=True, kw_only=True):
    """The nemesis begins; `number` counts the faults of the run."""

    number: int
    fault: str
    target: str


class FaultEnded(Event, frozen=True, kw_only=True):
    """The fault is over; it counts only if it `bit`, and the proof says how that is known."""

    number: int
    fault: str
    target: str
    bit: bool
    proof: str
    in_flight: int


class LoadEnded(Event, frozen=True, kw_only=True):
    """The clients submit nothing more."""


class RunEnded(Event, frozen=True, kw_only=True):
    """The harness has waited long enough, or all is at rest."""

    at_rest: bool
    said: str = ""


AnyEvent = (
    Polled
    | Published
    | Settling
    | Counted
    | Delivered
    | Letting
    | Claimed
    | HandedBack
    | Recorded
    | Buried
    | Beaten
    | DeclaredDead
    | Rescued
    | Booted
    | Submitted
    | CancelAsked
    | ReplayAsked
    | Seen
    | Clock
    | Started
    | Exited
    | FaultBegan
    | FaultEnded
    | LoadEnded
    | RunEnded
)
