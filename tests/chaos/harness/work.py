"""What the clients of a run ask for: kinds of work in a fixed mix, drawn from the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random

PRIORITIES = ("HIGH", "MEDIUM", "LOW")


class Kind(NamedTuple):
    """One way a task may go; `share` of a thousand, and what the task becomes if nobody cancels it."""

    share: int
    kind: str
    expected: str
    most_seconds: float = 0.0
    failures: int = 0
    least_seconds: float = 0.0


MIX = (
    Kind(700, "chaos.ok", "COMPLETED", 0.05),
    Kind(60, "chaos.ok", "COMPLETED", 3.0),
    Kind(50, "chaos.thread", "COMPLETED", 0.2),
    Kind(20, "chaos.child", "COMPLETED", 0.1),
    Kind(60, "chaos.flaky", "COMPLETED", 0.05, failures=1),
    Kind(15, "chaos.flaky", "COMPLETED", 0.05, failures=3),
    Kind(15, "chaos.flaky", "FAILED", 0.05, failures=9),
    Kind(20, "chaos.later", "COMPLETED", 0.7),
    Kind(30, "chaos.permanent", "FAILED", 0.05),
    Kind(10, "chaos.times_out", "FAILED"),
    Kind(10, "chaos.stubborn", "FAILED", 3.0, least_seconds=1.0),
    Kind(5, "chaos.huge", "COMPLETED"),
    Kind(5, "chaos.unstorable", "FAILED"),
)

DEADLY = (
    Kind(1, "chaos.exit", "FAILED", 0.3),
    Kind(1, "chaos.segfault", "FAILED", 0.3),
    Kind(1, "chaos.hog", "FAILED"),
)
"""Each takes a worker along, or two: rare, or nothing else would happen."""


class Wanted(NamedTuple):
    """One task as a client asks for it."""

    name: str
    kind: str
    expected: str
    body: dict[str, object]


def draw(rng: random.Random, name: str, deadly: bool = False) -> Wanted:
    """Draw a task."""
    mix = DEADLY if deadly else MIX
    [chosen] = rng.choices(mix, weights=[each.share for each in mix])
    payload: dict[str, object] = {"seconds": round(rng.uniform(chosen.least_seconds, chosen.most_seconds), 3)}
    if chosen.failures:
        payload["failures"] = chosen.failures
    body: dict[str, object] = {"kind": chosen.kind, "name": name, "payload": payload}
    body["priority"] = rng.choice(PRIORITIES)
    return Wanted(name, chosen.kind, chosen.expected, body)
