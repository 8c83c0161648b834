"""A history with its indexes, made once and read by every invariant."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from storage.model import Status
from tests.chaos.harness.events import (
    Beaten,
    Booted,
    CancelAsked,
    Claimed,
    DeclaredDead,
    Event,
    Exited,
    FaultBegan,
    FaultEnded,
    LoadEnded,
    Recorded,
    Ref,
    ReplayAsked,
    Rescued,
    RunEnded,
    Seen,
    Started,
    Submitted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.chaos.harness.events import AnyEvent
    from tests.chaos.harness.history import Effect, FinalTask, History, OutboxChange, TaskChange

CLOCKS_SECONDS = 0.05
"""How far the database's clock, brought to the scale of the events, may be from it."""

NEW, PENDING, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = map(int, Status)
WAITING = (NEW, PENDING)

Broken = tuple[str, str]
"""What breaks an invariant: a task, a program or "run", and a sentence."""

E = TypeVar("E", bound=Event)
K = TypeVar("K")
V = TypeVar("V")


class Incarnation(NamedTuple):
    """One process of a program; `by` is what its events say, None if it died before it said anything."""

    program: str
    pid: int
    by: str | None
    started_at: float
    exited: Exited | None


class Timeline:
    """All of a history by what an invariant asks for; lists are in the order in which it happened."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.final: dict[str, FinalTask] = {task.id: task for task in history.final.tasks}
        self.changes = grouped(_numbered(history.tasks), lambda change: change.task)
        self.rows = grouped(_numbered(history.outbox), lambda change: change.task)
        by_kind: dict[type, list[Any]] = grouped(history.events, type)
        self._by_kind = by_kind
        self.processes: dict[str, list[AnyEvent]] = grouped(history.events, lambda event: event.by)
        effects = grouped(history.effects, lambda effect: effect.what)
        self.starts = grouped(effects.get("start", ()), _run_of)
        self.ends = grouped(effects.get("end", ()), _run_of)
        self.cancels = grouped(self.of(CancelAsked), lambda asked: asked.task)
        self.replays = grouped(self.of(ReplayAsked), lambda asked: (asked.task, asked.dispatch))
        self.seen = grouped(self.of(Seen), lambda seen: seen.task)
        self._index_posts()
        self._index_runs()
        self._index_workers()

    def of(self, kind: type[E]) -> list[E]:
        """List the events of one kind."""
        events: list[E] = self._by_kind.get(kind, [])
        return events

    def moves(self) -> Iterator[tuple[TaskChange, TaskChange]]:
        """Pair each change of a task with the one before it."""
        for changes in self.changes.values():
            yield from pairwise(changes)

    def at(self, task: str, moment: float) -> TaskChange | None:
        """Tell what a task was at a moment."""
        found = None
        for change in self.changes.get(task, ()):
            if change.at > moment:
                break
            found = change
        return found

    @property
    def ended_at(self) -> float:
        """When the run ended."""
        ended = self.of(RunEnded)
        return ended[-1].at if ended else max((event.at for event in self.history.events), default=0.0)

    @property
    def load_ended_at(self) -> float:
        """When the clients had submitted all."""
        ended = self.of(LoadEnded)
        return ended[-1].at if ended else self.ended_at

    @property
    def last_fault_at(self) -> float:
        """When the last fault was over."""
        return max((fault.at for fault in self.of(FaultEnded)), default=float("-inf"))

    @property
    def stopped(self) -> bool:
        """Whether the programs were asked to end after the run."""
        return any(exited.at > self.ended_at for exited in self.of(Exited))

    def asked_to_end_at(self, incarnation: Incarnation) -> float:
        """When a process was asked to end that did so: by a fault of its program, or with all others."""
        exited = incarnation.exited
        if exited is None or not exited.wanted:
            return float("inf")
        asked = [fault.at for fault in self.of(FaultBegan) if fault.target == exited.program]
        asked.append(self.ended_at)
        return max((at for at in asked if incarnation.started_at <= at <= exited.at), default=float("inf"))

    def _index_runs(self) -> None:
        self.claims: dict[Ref, TaskChange] = {}
        """The change by which a dispatch was first taken."""
        self.endings: dict[Ref, list[TaskChange]] = defaultdict(list)
        """The changes by which a dispatch left IN_PROGRESS."""
        for changes in self.changes.values():
            for change in changes:
                if change.status == IN_PROGRESS and change.old_status != IN_PROGRESS:
                    self.claims.setdefault((change.task, change.dispatch), change)
                elif change.old_status == IN_PROGRESS != change.status:
                    self.endings[change.task, change.old_dispatch or 0].append(change)
        self.verdicts: dict[Ref, list[tuple[Recorded, str, int | None]]] = defaultdict(list)
        """What was answered to the verdicts on a dispatch: the call, the verdict, the status."""
        for recorded in self.of(Recorded):
            for task, dispatch, _, verdict, status in recorded.verdicts:
                self.verdicts[task, dispatch].append((recorded, verdict, status))
        self.rescued = {(task, dispatch) for event in self.of(Rescued) for task, dispatch, _ in event.runs}

    def _index_workers(self) -> None:
        booted = {event.pid: event.by for event in self.of(Booted)}
        exits = grouped(self.of(Exited), lambda event: (event.program, event.pid))
        self.incarnations = [
            Incarnation(
                started.program,
                started.pid,
                booted.get(started.pid),
                started.at,
                next(
                    (left for left in exits.get((started.program, started.pid), ()) if left.at >= started.at),
                    None,
                ),
            )
            for started in self.of(Started)
        ]
        self.dead_at: dict[str, float] = {}
        """When a worker is known to have been dead: its declaration, or the answer to its heartbeat."""
        for event in self.of(DeclaredDead):
            for worker in event.workers:
                self.dead_at[worker] = min(event.at, self.dead_at.get(worker, event.at))
        for beaten in self.of(Beaten):
            if not beaten.alive:
                self.dead_at[beaten.worker] = min(beaten.at, self.dead_at.get(beaten.worker, beaten.at))
        by = {incarnation.by: incarnation for incarnation in self.incarnations}
        heard: list[Claimed | Beaten] = [*self.of(Claimed), *self.of(Beaten)]
        self.homes: dict[str, Incarnation] = {event.worker: by[event.by] for event in heard if event.by in by}
        """The process that is, or was, a worker."""

    def _index_posts(self) -> None:
        self.posts: dict[str, list[tuple[Submitted, int]]] = defaultdict(list)
        """The POSTs of each name, and its place in them."""
        for event in self.of(Submitted):
            for place, name in enumerate(event.names):
                self.posts[name].append((event, place))


def grouped(values: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    """Group, keeping the order."""
    groups: dict[K, list[V]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def _run_of(effect: Effect) -> Ref:
    return effect.task, effect.dispatch


_Change = TypeVar("_Change", bound="TaskChange | OutboxChange")


def _numbered(changes: list[_Change]) -> list[_Change]:
    return sorted(changes, key=lambda change: change.number)
