"""What a run was worth: how much happened in it, and what it cost. Counted, never judged."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

from storage.model import Reason, Status
from storage.upkeep import MOST_LOSSES
from tests.chaos.harness.events import CancelAsked, Claimed, Delivered, FaultBegan, FaultEnded, Submitted
from tests.chaos.harness.invariants.timeline import COMPLETED, IN_PROGRESS, PENDING, Timeline

if TYPE_CHECKING:
    from collections.abc import Sequence


WORK = ("tasks.high", "tasks.medium", "tasks.low")


def count(timeline: Timeline) -> dict[str, Any]:
    """Count what the report of a run shows."""
    return {
        **_load(timeline),
        **_faults(timeline),
        **_duplicates(timeline),
        **_unknown(timeline),
        **_runs(timeline),
        "recovery_seconds": _recovery(timeline),
    }


def _load(timeline: Timeline) -> dict[str, Any]:
    tasks = timeline.final.values()
    posts = timeline.of(Submitted)
    accepted = {task for post in posts if post.outcome == "ok" for task in post.ids}
    seconds = timeline.load_ended_at - min((post.began for post in posts), default=timeline.load_ended_at)
    return {
        "tasks": len(tasks),
        "by_status": {status.name: sum(task.status == status for task in tasks) for status in Status},
        "accepted": len(accepted),
        "load_seconds": round(seconds, 1),
        "tasks_per_second": round(len(accepted) / seconds, 1) if seconds > 0 else 0.0,
        "innocents_lost_to_losses": sum(
            task.reason == Reason.KILLS_WORKER and task.losses >= MOST_LOSSES and expected == "COMPLETED"
            for task, expected in _expected(timeline)
        ),
    }


def _expected(timeline: Timeline) -> list[tuple[Any, str]]:
    return [
        (task, post.expected[place])
        for task in timeline.final.values()
        for post, place in timeline.posts.get(task.name, ())[:1]
    ]


def _faults(timeline: Timeline) -> dict[str, Any]:
    began = {fault.number: fault.at for fault in timeline.of(FaultBegan)}
    ended = timeline.of(FaultEnded)
    bit = [fault for fault in ended if fault.bit]
    spans = sorted((began.get(fault.number, fault.at), fault.at) for fault in bit)
    return {
        "faults": len(ended),
        "faults_that_bit": len(bit),
        "faults_by_class": dict(sorted(Counter(fault.fault for fault in bit).items())),
        "overlapping_share": round(_overlapping(spans) / len(spans), 3) if spans else 0.0,
    }


def _overlapping(spans: Sequence[tuple[float, float]]) -> int:
    """Count the spans that share a moment with another; they are sorted by their beginning."""
    shared: set[int] = set()
    reaching = -1
    for number, (start, end) in enumerate(spans):
        if reaching >= 0 and start < spans[reaching][1]:
            shared |= {number, reaching}
        if reaching < 0 or end > spans[reaching][1]:
            reaching = number
    return len(shared)


def _duplicates(timeline: Timeline) -> dict[str, Any]:
    work = [event for event in timeline.of(Delivered) if event.queue in WORK]
    delivered = [reference for event in work for reference in event.references]
    claimed = timeline.of(Claimed)
    sent = Counter(
        (row.task, row.dispatch)
        for row in timeline.history.outbox
        if row.operation == "INSERT" and not row.route.endswith(".dlq")
    )
    return {
        "references_delivered": len(delivered),
        "duplicates_delivered": len(delivered) - len(set(delivered)),
        "claims_refused": sum(len(event.asked) - len(event.taken) for event in claimed),
        "sent_again": sum(count - 1 for count in sent.values()),
        "stale_verdicts_refused": sum(
            status is None for verdicts in timeline.verdicts.values() for _, _, status in verdicts
        ),
    }


def _unknown(timeline: Timeline) -> dict[str, Any]:
    names = {task.name for task in timeline.final.values()}
    posts = [post for post in timeline.of(Submitted) if post.outcome == "unknown"]
    cancels = [asked for asked in timeline.of(CancelAsked) if asked.outcome == "unknown"]
    written = sum(post.names[0] in names for post in posts)
    return {
        "unknown_outcomes": {
            "posts": len(posts),
            "posts_that_were_written": written,
            "posts_that_were_not": len(posts) - written,
            "cancels": len(cancels),
        }
    }


def _runs(timeline: Timeline) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for before, change in timeline.moves():
        if before.status != IN_PROGRESS or change.status == IN_PROGRESS:
            continue
        counts["losses"] += change.losses > before.losses
        counts["retries"] += change.attempt > before.attempt
        counts["postponements"] += change.postponements > before.postponements
        same = (before.attempt, before.losses, before.postponements)
        untouched = (change.attempt, change.losses, change.postponements) == same
        counts["interrupted"] += change.status == PENDING and untouched
    starts = Counter(task for task, _ in timeline.starts)
    return {
        **{name: counts[name] for name in ("losses", "retries", "postponements", "interrupted")},
        "handlers_started": sum(map(len, timeline.starts.values())),
        "most_starts_of_a_task": max(starts.values(), default=0),
    }


def _recovery(timeline: Timeline) -> dict[str, dict[str, float]]:
    """Tell, by class of fault, how long after it until a task that was posted after it was COMPLETED."""
    posted = {
        task: post.began for post in timeline.of(Submitted) if post.outcome == "ok" for task in post.ids
    }
    completed = [
        (posted[change.task], change.at)
        for changes in timeline.changes.values()
        for change in changes
        if change.status == COMPLETED and change.task in posted
    ]
    completed.sort()
    first_after: list[float] = []
    earliest = float("inf")
    for _, at in reversed(completed):
        earliest = min(earliest, at)
        first_after.append(earliest)
    first_after.reverse()
    seconds: dict[str, list[float]] = defaultdict(list)
    for fault in timeline.of(FaultEnded):
        place = bisect_left(completed, (fault.at,))
        if fault.bit and place < len(completed):
            seconds[fault.fault].append(first_after[place] - fault.at)
    return {
        name: {"median": round(median(found), 2), "worst": round(max(found), 2), "faults": len(found)}
        for name, found in sorted(seconds.items())
    }
