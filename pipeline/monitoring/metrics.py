"""What a process counts, in a registry of its own; documents/operations/metrics.md explains each metric."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from pipeline.broker import Publication
from pipeline.broker.topology import WORK_QUEUES, UnknownRoute, parse, work_route
from pipeline.settings import Role
from storage.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from pipeline.slots import Slots

UNKNOWN = "unknown"

OUTCOMES = ("completed", "retried", "postponed", "failed", "cancelled", "interrupted", "refused")

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""The buckets of both histograms: from a handler that answers at once to a task that waited an hour."""


class Metrics:
    """The metrics of the roles that a process has; those of other roles can be counted, but are not shown.

    Every label is bounded: queues, statuses, outcomes, and of the kinds those that the process knows.
    """

    def __init__(self, roles: AbstractSet[Role] = frozenset(Role), kinds: Iterable[str] = ()) -> None:
        # A second series beside every counter, which says since when it counts: the start of the process.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library gives it no types
        self.registry = CollectorRegistry()
        self._kinds = frozenset(kinds)
        self._durations: dict[str, Histogram] = {}
        ProcessCollector(registry=self.registry)

        def of(role: Role) -> CollectorRegistry | None:
            return self.registry if role in roles else None

        counter = partial(Counter, registry=of(Role.GATEWAY))
        self.accepted = counter("baton_tasks_accepted", "New tasks that are durable.", ["queue"])
        self.tasks_refused = counter(
            "baton_tasks_refused", "New tasks refused because too many wait already.", ["queue"]
        )
        self.cancel_requests = counter(
            "baton_cancel_requests", "Cancellations asked, by the task's status afterwards.", ["status"]
        )

        counter = partial(Counter, registry=of(Role.RELAY))
        self.publications = counter(
            "baton_publications", "Messages sent, by what the broker said of them.", ["queue", "answer"]
        )
        self.published = counter("baton_references_published", "References that the broker confirmed.")
        self.rows_failed = counter("baton_outbox_rows_failed", "Outbox rows given up as undeliverable.")

        counter = partial(Counter, registry=of(Role.WORKER))
        self.claimed = counter("baton_references_claimed", "References claimed.", ["queue"])
        self.refused = counter("baton_references_refused", "References whose claim was refused.")
        self.handed_back = counter(
            "baton_references_handed_back", "References given back because no slot was free."
        )
        self.ended = counter("baton_runs_ended", "Runs by what became of them.", ["kind", "outcome"])
        histogram = partial(Histogram, registry=of(Role.WORKER), buckets=SECONDS)
        self.waited = histogram(
            "baton_task_wait_seconds", "From when a task was due until it was claimed.", ["queue"]
        )
        self.duration = histogram("baton_run_duration_seconds", "How long a handler ran.", ["kind"])
        gauge = partial(Gauge, registry=of(Role.WORKER))
        self._slots = gauge("baton_worker_slots", "How many handlers this worker runs at once.")
        self._slots_used = gauge("baton_worker_slots_used", "Slots that hold a task.")

        counter = partial(Counter, registry=of(Role.JANITOR))
        self.rescued = counter("baton_runs_rescued", "Runs of dead workers, and hung ones, that were ended.")
        self.resent = counter("baton_references_resent", "References sent again as lost.", ["queue"])
        self.declared_dead = counter("baton_workers_declared_dead", "Workers declared dead.")
        gauge = partial(Gauge, registry=of(Role.JANITOR))
        self.due_rows = gauge(
            "baton_outbox_due_rows", "Outbox rows that are due, counted to 10,000.", ["queue"]
        )
        self.oldest_due = gauge(
            "baton_outbox_oldest_due_age_seconds",
            "How long the oldest due outbox row has been due.",
            ["queue"],
        )
        self.failed_rows = gauge(
            "baton_outbox_failed_rows", "Outbox rows that are FAILED, counted to 10,000."
        )
        self.ready_messages = gauge("baton_queue_messages_ready", "Messages ready in a queue.", ["queue"])
        self.consumers = gauge("baton_queue_consumers", "Consumers of a queue.", ["queue"])
        self.workers = gauge("baton_workers_alive", "Live workers that listen to a queue.", ["queue"])

        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Make the series that an alert may wait for: a rate sees no step from nothing to one."""
        for queue in WORK_QUEUES.values():
            for by_queue in (self.accepted, self.tasks_refused, self.claimed, self.waited, self.resent):
                by_queue.labels(queue)
            for answer in Publication:
                self.publications.labels(queue, answer.value)
        for status in (Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED, Status.CANCELLED):
            self.cancel_requests.labels(status.name.lower())
        for kind in self._kinds:
            self.duration.labels(kind)
            for outcome in OUTCOMES:
                self.ended.labels(kind, outcome)

    def kind(self, kind: str) -> str:
        """Give the label of a kind."""
        return kind if kind in self._kinds else UNKNOWN

    def duration_of(self, kind: str) -> Histogram:
        """Give the series of a kind; kept, since to look it up by its label takes longer than to observe."""
        label = self.kind(kind)
        if label not in self._durations:
            self._durations[label] = self.duration.labels(label)
        return self._durations[label]

    def follow(self, slots: Slots) -> None:
        """Show a worker's slots as they are when somebody looks."""
        self._slots.set_function(lambda: slots.count)
        self._slots_used.set_function(lambda: slots.used)


@lru_cache(maxsize=1_000)
def queue_of(route: str) -> str:
    """Give the label of a route: the retry queues of a priority are one, however many delays there are."""
    try:
        parsed = parse(route)
    except UnknownRoute:
        return UNKNOWN
    if parsed.priority is None or not parsed.hold_seconds:
        return parsed.name
    return f"{work_route(parsed.priority)}.retry"
