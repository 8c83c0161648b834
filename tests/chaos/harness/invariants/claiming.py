"""Custody passes from the broker to the database by a claim, and a claim starts one handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.harness.events import Buried, Claimed, Delivered, HandedBack, Letting
from tests.chaos.harness.invariants.timeline import CANCELLED, CLOCKS_SECONDS, WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.harness.events import AnyEvent, Ref
    from tests.chaos.harness.history import TaskChange
    from tests.chaos.harness.invariants.timeline import Broken, Timeline

DLQ = "tasks.dlq"


class _Hands:
    """What one process had been delivered, and had seen answered, at each point of its events."""

    def __init__(self) -> None:
        self._clock = 0
        self._deliveries: dict[int, tuple[Delivered, int]] = {}
        self._passed: dict[Ref, int] = {}
        self._taken: set[Ref] = set()
        self._buried: dict[Ref, int] = {}

    def follow(self, event: AnyEvent) -> None:
        """Take the next event of the process."""
        self._clock += 1
        match event:
            case Delivered():
                self._deliveries[event.delivery] = (event, self._clock)
            case Claimed():
                self._passed.update(dict.fromkeys(event.asked, self._clock))
                self._taken.update(event.taken)
            case HandedBack():
                self._passed.update(dict.fromkeys(event.references, self._clock))
            case Buried():
                self._buried.update(dict.fromkeys(event.references, self._clock))

    def delivered(self, number: int) -> Delivered | None:
        """Tell what a delivery brought."""
        found = self._deliveries.get(number)
        return found[0] if found else None

    def still_in_custody(self, number: int) -> list[Ref]:
        """List the references of a delivery that nobody else holds by now: its message is all there is."""
        delivered, since = self._deliveries[number]
        if delivered.queue == DLQ:
            return [reference for reference in delivered.references if self._buried.get(reference, 0) < since]
        return [
            reference
            for reference in delivered.references
            if self._passed.get(reference, 0) < since and reference not in self._taken
        ]

    def asked_before(self, reference: Ref) -> bool:
        """Tell whether a claim of it was ever answered."""
        return reference in self._passed


def ack_after_claim(timeline: Timeline) -> Iterator[Broken]:
    """A message is acked after the claim of all it brought was answered, or the hand-back, or the burial."""
    for by, events in timeline.processes.items():
        hands = _Hands()
        for event in events:
            hands.follow(event)
            if not isinstance(event, Letting) or event.how != "ack":
                continue
            delivered = hands.delivered(event.delivery)
            if delivered is None:
                yield by, f"acked delivery {event.delivery}, which had not come"
                continue
            for reference in hands.still_in_custody(event.delivery):
                # A duplicate of one refused before: harmless if the refusal still holds.
                if delivered.queue != DLQ and hands.asked_before(reference):
                    now = timeline.at(reference[0], event.at)
                    if now is None or not _waits(now, reference):
                        continue
                what = "burial" if delivered.queue == DLQ else "claim"
                acked = f"{by} acked delivery {event.delivery} at {event.at:.3f}"
                yield (
                    reference[0],
                    f"{acked}: no {what} of dispatch {reference[1]} was answered since it came",
                )


def claim_refuses_only_what_does_not_wait(timeline: Timeline) -> Iterator[Broken]:
    """A claim that refuses a reference finds it taken, ended or given up, or hands it back."""
    for claimed in timeline.of(Claimed):
        if len(claimed.taken) == len(claimed.asked):
            continue
        since, until = claimed.began - CLOCKS_SECONDS, claimed.at + CLOCKS_SECONDS
        for reference in set(claimed.asked) - set(claimed.taken):
            task, dispatch = reference
            waited = _waited_through(timeline, reference, since, until)
            if waited and not any(
                row.operation == "INSERT" and row.dispatch == dispatch and since <= row.at <= until
                for row in timeline.rows.get(task, ())
            ):
                refused = f"{claimed.by} was refused dispatch {dispatch} at {claimed.at:.3f}"
                yield task, f"{refused}, which waited from {since:.3f} to {until:.3f}"


def _waited_through(timeline: Timeline, reference: Ref, since: float, until: float) -> bool:
    """Tell whether a task waited under a dispatch all the time; a relay's mark does not end the waiting."""
    start = timeline.at(reference[0], since)
    if start is None or not _waits(start, reference):
        return False
    changes = timeline.changes[reference[0]]
    return all(_waits(change, reference) for change in changes if since < change.at <= until)


def _waits(change: TaskChange, reference: Ref) -> bool:
    return change.status in WAITING and change.dispatch == reference[1]


def one_start_per_dispatch(timeline: Timeline) -> Iterator[Broken]:
    """One worker takes a dispatch, and then one handler starts under it."""
    cancelled = cancelled_while_waiting(timeline)
    for run, starts in timeline.starts.items():
        task, dispatch = run
        if len(starts) > 1:
            yield task, f"{len(starts)} handlers started under dispatch {dispatch}"
        claim = timeline.claims.get(run)
        if run not in cancelled and (claim is None or claim.at > starts[0].at + CLOCKS_SECONDS):
            yield task, f"a handler of dispatch {dispatch} started at {starts[0].at:.3f}, before it was taken"
    takers: dict[Ref, str] = {}
    for claimed in timeline.of(Claimed):
        for reference in claimed.taken:
            first = takers.setdefault(reference, claimed.worker)
            if first != claimed.worker:
                yield reference[0], f"dispatch {reference[1]} was taken by {first} and by {claimed.worker}"


def cancelled_while_waiting(timeline: Timeline) -> dict[Ref, TaskChange]:
    """List the dispatches that a cancel ended before anybody had taken them."""
    return {
        (change.task, change.dispatch): change
        for before, change in timeline.moves()
        if before.status in WAITING and change.status == CANCELLED
    }


def cancelled_never_starts(timeline: Timeline) -> Iterator[Broken]:
    """Nothing starts under a dispatch that was cancelled before anybody had taken it."""
    for run, change in cancelled_while_waiting(timeline).items():
        for start in timeline.starts.get(run, ()):
            cancelled = f"dispatch {run[1]} was cancelled at {change.at:.3f}"
            yield run[0], f"{cancelled}, and a handler of it started at {start.at:.3f}"


def idempotency_key_is_stable(timeline: Timeline) -> Iterator[Broken]:
    """All handlers of one task and replay were given one key, and no other task was given it."""
    replays = {
        (change.task, change.dispatch): change.replay
        for changes in timeline.changes.values()
        for change in changes
    }
    keys: dict[tuple[str, int | None], str] = {}
    owners: dict[str, tuple[str, int | None]] = {}
    for effect in timeline.history.effects:
        owner = (effect.task, replays.get((effect.task, effect.dispatch)))
        key = effect.idempotency_key
        if keys.setdefault(owner, key) != key:
            yield effect.task, f"replay {owner[1]} was given the keys {keys[owner]!r} and {key!r}"
        elif owners.setdefault(key, owner) != owner:
            yield effect.task, f"was given the key {key!r} of {owners[key]}"
