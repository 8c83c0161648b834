"""The ports, measured: each does what the one inside does, counts what came of it, and notes that it came.

What is not measured is the inner port's own method. Counting costs some microseconds a batch.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Self

from pipeline.broker.topology import work_route
from pipeline.monitoring.health import Recurring
from pipeline.monitoring.metrics import queue_of
from storage.model import Accepted, Priority, Retry, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from pipeline.broker import Broker, Delivery, Message, Publication, Subscription
    from pipeline.clock import Clock
    from pipeline.monitoring.health import Progress
    from pipeline.monitoring.metrics import Metrics
    from pipeline.ports import Ledger, Outbox, Runs, Submissions, Tasks, Upkeep, Workers
    from pipeline.slots import Stoppable
    from pipeline.stages.each import Starting
    from pipeline.stages.execute import Outcome
    from storage.model import (
        Caller,
        Disconnected,
        Heartbeat,
        KeyReused,
        OutboxRow,
        Recorded,
        Reference,
        Rescued,
        Run,
        Submission,
        Task,
        Verdict,
    )

LONGEST_CARRIED_SECONDS = 30.0
"""How long a relay may be busy with what it has found: what was found earlier is under way no more."""


class MeasuredLedger:
    """A `pipeline.ports.Ledger` whose hands are measured."""

    def __init__(self, ledger: Ledger, metrics: Metrics, progress: Progress) -> None:
        self.submissions = MeasuredSubmissions(ledger.submissions, metrics)
        self.tasks = MeasuredTasks(ledger.tasks, metrics)
        self.outbox = MeasuredOutbox(ledger.outbox, metrics, progress)
        self.runs = MeasuredRuns(ledger.runs, metrics, progress)
        self.workers = MeasuredWorkers(ledger.workers, metrics, progress)
        self.upkeep = MeasuredUpkeep(ledger.upkeep, metrics, progress)
        self.dead_letters = ledger.dead_letters
        self.signals = ledger.signals
        self.ready = ledger.ready
        self.clock_offset_seconds = ledger.clock_offset_seconds
        progress.ask_database = ledger.ready


class MeasuredSubmissions:
    """Counts new tasks, not those that a repeated key found."""

    def __init__(self, submissions: Submissions, metrics: Metrics) -> None:
        self._submissions = submissions
        self._metrics = metrics
        self.repeated = submissions.repeated
        self.waiting = submissions.waiting

    async def submit(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused]:
        """Submit a group."""
        answers = await self._submissions.submit(submissions)
        accepted = Counter(
            submission.priority
            for submission, answer in zip(submissions, answers, strict=True)
            if isinstance(answer, Accepted) and not answer.replayed
        )
        for priority, count in accepted.items():
            self._metrics.accepted.labels(work_route(priority)).inc(count)
        return answers


class MeasuredTasks:
    """Counts cancellations that were asked."""

    def __init__(self, tasks: Tasks, metrics: Metrics) -> None:
        self._tasks = tasks
        self._metrics = metrics
        self.get = tasks.get
        self.get_many = tasks.get_many
        self.find = tasks.find
        self.statuses = tasks.statuses
        self.ended = tasks.ended
        self.replay = tasks.replay

    async def cancel(self, caller: Caller, task_id: UUID) -> Task | None:
        """Cancel a task, or ask it to stop."""
        task = await self._tasks.cancel(caller, task_id)
        if task is not None:
            self._metrics.cancel_requests.labels(task.status.name.lower()).inc()
        return task


class MeasuredOutbox:
    """Counts what the broker took for good, and what no queue ever took."""

    def __init__(self, outbox: Outbox, metrics: Metrics, progress: Progress) -> None:
        self._outbox = outbox
        self._metrics = metrics
        self._progress = progress
        self._found = Recurring(progress.clock)
        self.renew = outbox.renew
        self.release = outbox.release
        self.find = outbox.find
        self.retry = outbox.retry
        self.capacity = outbox.capacity

    async def poll(self, most: int, lease_seconds: float) -> list[OutboxRow]:
        """Lease due rows."""
        rows = await self._outbox.poll(most, lease_seconds)
        self._progress.polled.happened()
        if rows:
            self._found.happened()
            self._progress.confirmed.asked()
        elif (self._found.age_seconds() or 0.0) > LONGEST_CARRIED_SECONDS:
            # What was found is not there any more, or it would be due again: a task was cancelled, say.
            self._progress.confirmed.answered()
        return rows

    async def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
        """Let go of confirmed rows."""
        await self._outbox.settle(confirmed)
        self._metrics.published.inc(len(confirmed))
        self._progress.confirmed.answered()

    async def returned(
        self, row_ids: Sequence[int], error: str, most: int, delay_seconds: float
    ) -> list[int]:
        """Count an attempt of rows that no queue takes."""
        failed = await self._outbox.returned(row_ids, error, most, delay_seconds)
        self._metrics.rows_failed.inc(len(failed))
        self._progress.confirmed.answered()
        return failed


class MeasuredRuns:
    """Counts claims, refusals and verdicts, and times how late a task is claimed."""

    def __init__(self, runs: Runs, metrics: Metrics, progress: Progress) -> None:
        self._runs = runs
        self._metrics = metrics
        self._progress = progress
        self.release = runs.release

    async def claim(
        self, references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str]
    ) -> list[Run]:
        """Claim references."""
        self._progress.claimed.asked()
        runs = await self._runs.claim(references, worker_id, kinds)
        self._progress.claimed.answered()
        self._metrics.refused.inc(len(references) - len(runs))
        for priority, count in Counter(run.priority for run in runs).items():
            self._metrics.claimed.labels(work_route(priority)).inc(count)
        waited = {priority: self._metrics.waited.labels(work_route(priority)) for priority in Priority}
        for run in runs:
            waited[run.priority].observe(max(0.0, run.waited_seconds))
        return runs

    async def record(self, verdicts: Sequence[Verdict]) -> list[Recorded]:
        """Write verdicts."""
        self._progress.recorded.asked()
        recorded = await self._runs.record(verdicts)
        self._progress.recorded.answered()
        self._count_ended(zip(verdicts, recorded, strict=True))
        return recorded

    def _count_ended(self, ends: Iterable[tuple[Verdict, Recorded]]) -> None:
        ended = Counter(
            (self._metrics.kind(verdict.run.kind), _outcome(verdict, recorded.status))
            for verdict, recorded in ends
        )
        for labels, count in ended.items():
            self._metrics.ended.labels(*labels).inc(count)

    async def hand_back(self, references: Sequence[Reference], delay_seconds: float) -> None:
        """Give references back through the outbox."""
        await self._runs.hand_back(references, delay_seconds)
        self._metrics.handed_back.inc(len(references))


def _outcome(verdict: Verdict, status: Status | None) -> str:
    """Name what became of a run by what was written, not by what was asked: a cancellation may override."""
    match status:
        case None:
            return "refused"
        case Status.PENDING if isinstance(verdict, Retry):
            return "retried" if verdict.burns_attempt else "postponed"
        case Status.PENDING:
            return "interrupted"
        case _:
            return status.name.lower()


class MeasuredWorkers:
    """Notes when the database last heard from this worker, and counts those declared dead."""

    def __init__(self, workers: Workers, metrics: Metrics, progress: Progress) -> None:
        self._workers = workers
        self._metrics = metrics
        self._progress = progress
        self.close = workers.close
        self.held_by = workers.held_by
        self.disconnected = workers.disconnected

    async def beat(self, beat: Heartbeat) -> bool:
        """Report for duty."""
        sent_at = self._progress.clock.now()
        alive = await self._workers.beat(beat)
        if alive:
            self._progress.heard.happened(sent_at)
        return alive

    async def declare_disconnected_dead(self, disconnected: Collection[Disconnected]) -> list[UUID]:
        """Declare disconnected workers dead."""
        dead = await self._workers.declare_disconnected_dead(disconnected)
        self._metrics.declared_dead.inc(len(dead))
        return dead

    async def declare_dead(self, lease_seconds: float) -> list[UUID]:
        """Declare silent workers dead."""
        dead = await self._workers.declare_dead(lease_seconds)
        self._metrics.declared_dead.inc(len(dead))
        return dead


class MeasuredUpkeep:
    """Counts what the janitor moves."""

    def __init__(self, upkeep: Upkeep, metrics: Metrics, progress: Progress) -> None:
        self._upkeep = upkeep
        self._metrics = metrics
        self._progress = progress
        self.claimed_through = upkeep.claimed_through
        self.unclaimed = upkeep.unclaimed
        self.backlog = upkeep.backlog
        self.prune = upkeep.prune
        self.restart_volatile = upkeep.restart_volatile

    async def rescue(self, most: int, lease_seconds: float, *, hung: bool = True) -> list[Rescued]:
        """Dispatch lost and hung runs again."""
        rescued = await self._upkeep.rescue(most, lease_seconds, hung=hung)
        self._metrics.rescued.inc(len(rescued))
        self._progress.rescued.happened()
        return rescued

    async def resend(
        self, priority: Priority, queued_before: datetime | None, most: int, min_age_seconds: float = 0.0
    ) -> int:
        """Send again what the broker lost."""
        sent = await self._upkeep.resend(priority, queued_before, most, min_age_seconds)
        self._metrics.resent.labels(work_route(priority)).inc(sent)
        return sent


class MeasuredBroker:
    """A `pipeline.broker.Broker` that counts what was said of its messages, and knows its consumers."""

    def __init__(self, broker: Broker, metrics: Metrics, progress: Progress) -> None:
        self._broker = broker
        self._metrics = metrics
        self._progress = progress
        self.ready = broker.ready
        self.declare = broker.declare
        self.depth = broker.depth

    async def __aenter__(self) -> Self:
        """Open the one inside."""
        await self._broker.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the one inside."""
        await self._broker.__aexit__(*exc)

    async def publish(self, messages: Sequence[Message]) -> list[Publication]:
        """Send messages."""
        answers = await self._broker.publish(messages)
        said = Counter(
            (queue_of(message.route), answer.value) for message, answer in zip(messages, answers, strict=True)
        )
        for labels, count in said.items():
            self._metrics.publications.labels(*labels).inc(count)
        return answers

    async def consume(self, queue: str, prefetch: int, deliver: Callable[[Delivery], None]) -> Subscription:
        """Consume a queue."""
        subscription = await self._broker.consume(queue, prefetch, deliver)
        self._progress.consumers[queue] = subscription
        return subscription


class MeasuredExecute:
    """Times the handlers that the stage inside starts."""

    def __init__(self, execute: Starting, metrics: Metrics, clock: Clock) -> None:
        self._execute = execute
        self._metrics = metrics
        self._clock = clock

    def start(self, run: Run, ended: Callable[[Outcome], None]) -> Stoppable:
        """Start one claimed task."""
        started_at = self._clock.now()

        def measured(outcome: Outcome) -> None:
            self._metrics.duration_of(run.kind).observe(self._clock.now() - started_at)
            ended(outcome)

        return self._execute.start(run, measured)
