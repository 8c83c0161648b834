"""A row leaves the outbox only after the broker holds what it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Counted, Polled, Published, Settling
from tests.chaos.harness.invariants.timeline import CLOCKS_SECONDS, grouped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.events import AnyEvent, Ref
    from tests.chaos.harness.invariants.timeline import Broken, Timeline

_Sent = tuple[str, "Ref"]


class _Relay:
    """What one process had leased and heard at each point of its events."""

    def __init__(self) -> None:
        self._clock = 0
        self._leased: dict[int, tuple[_Sent, int]] = {}
        self._said: dict[tuple[str, _Sent], int] = {}

    def follow(self, event: AnyEvent) -> None:
        """Take the next event of the process."""
        self._clock += 1
        if isinstance(event, Polled):
            for row, task, dispatch, route in event.rows:
                self._leased.setdefault(row, ((route, (task, dispatch)), self._clock))
        elif isinstance(event, Published):
            for route, references, publication in event.messages:
                for reference in references:
                    self._said[publication, (route, reference)] = self._clock

    def heard(self, publication: str, row: int) -> tuple[str, str]:
        """Tell a row's task, and what is wrong unless the broker has said this of it since it was leased."""
        if row not in self._leased:
            return "run", "which this process had not leased"
        sent, leased_at = self._leased[row]
        (route, (task, dispatch)) = sent
        if self._said.get((publication, sent), 0) < leased_at:
            return task, f"dispatch {dispatch} by {route}, of which the broker had not said {publication}"
        return task, ""


def row_leaves_after_confirm(timeline: Timeline) -> Iterator[Broken]:
    """A relay deletes a row only after the broker's confirm, and nobody else deletes one that waits."""
    settling: dict[int, float] = {}
    for by, events in timeline.processes.items():
        relay = _Relay()
        for event in events:
            relay.follow(event)
            if isinstance(event, Settling):
                for row in event.rows:
                    settling[row] = min(event.at, settling.get(row, event.at))
                    task, wrong = relay.heard("CONFIRMED", row)
                    if wrong:
                        yield task, f"{by} deletes row {row} at {event.at:.3f}: {wrong}"
    for change in timeline.history.outbox:
        if change.operation == "DELETE" and not change.status:
            began = settling.get(change.row)
            if began is None or began > change.at + CLOCKS_SECONDS:
                yield change.task, f"row {change.row} went at {change.at:.3f}, and no relay had settled it"


def no_row_counted_without_return(timeline: Timeline) -> Iterator[Broken]:
    """An attempt of a row is counted only after the broker returned it."""
    for by, events in timeline.processes.items():
        relay = _Relay()
        for event in events:
            relay.follow(event)
            if isinstance(event, Counted):
                for row in event.rows:
                    task, wrong = relay.heard("RETURNED", row)
                    if wrong:
                        yield task, f"{by} counts an attempt of row {row} at {event.at:.3f}: {wrong}"


def no_row_failed(timeline: Timeline) -> Iterator[Broken]:
    """No fault of a run makes an outbox row FAILED."""
    for row, changes in grouped(timeline.history.outbox, lambda change: change.row).items():
        failed = [change for change in changes if change.status]
        if failed:
            yield failed[0].task, f"outbox row {row} was FAILED at {failed[0].at:.3f}, by {failed[0].route}"
