"""Histories that break an invariant, each noted beside its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tests.chaos.harness.events import Polled, Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.chronicle import Chronicle

    Break = Callable[[Chronicle], object]

BREAKS: list[tuple[str, frozenset[str], Break]] = []


def breaks(invariant: str, *also: str) -> Callable[[Break], Break]:
    """Note that what follows breaks this invariant, and those that cannot hold then, and no other."""

    def note(happens: Break) -> Break:
        BREAKS.append((invariant, frozenset({invariant, *also}), happens))
        return happens

    return note


def taken(run: Chronicle, name: str = "a", **post: Any) -> str:
    """A task whose handler runs."""
    task = run.post(name, **post)
    run.relay(task)
    run.take(task)
    return task


def done(run: Chronicle, task: str, by: str = "worker-1.1") -> None:
    """Carry a task that waits with a new outbox row to its end."""
    run.relay(task)
    run.take(task, by)
    run.complete(task)


def replace_last(run: Chronicle, kind: type, **fields: Any) -> None:
    """Change what the last event of a kind says."""
    place = max(place for place, event in enumerate(run.events) if isinstance(event, kind))
    run.events[place] = msgspec.structs.replace(run.events[place], **fields)


def forget_last(run: Chronicle, kind: type) -> None:
    """Take the last event of a kind away."""
    run.events.pop(max(place for place, event in enumerate(run.events) if isinstance(event, kind)))


def alive(run: Chronicle, seconds: float) -> None:
    """Let time pass in which every process does what it is there for."""
    run.tick(seconds)
    run.beat("worker-1.1")
    run.beat("worker-2.1")
    run.declare_dead()
    run.events.append(Polled(at=run.tick(), by="relay-1.1", rows=[]))
    seen: dict[str, Any] = {"task_status": "NEW", "dispatch": 1, "replay": 0, "began": run.now}
    run.events.append(Seen(at=run.tick(), by="client", task="somebody's", **seen))
