"""Writes verdicts, and with each the outbox row that follows from it, in one statement for many."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from pipeline.clock import MonotonicClock
from pipeline.flow import Stage
from storage.backoff import until_known
from storage.errors import Refused, StorageError
from storage.model import Dead, Done, Failure, Reason, Recorded, Retry, Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.clock import Clock
    from pipeline.ports import Runs

log = structlog.get_logger()

MOST_BYTES = 4 << 20
"""How much of results is written by one statement."""

MOST_LINES = 20
"""Of so many successes a second each has its line in the log, which takes longer than all else of a run."""


class Record(Stage[list[Verdict], list[Recorded]]):
    """Returns when the verdicts are durable, or were refused because a later dispatch had taken over.

    A verdict that the database refuses as data is written once more, as FAILED with `result_unstorable`.
    Whatever else the database says, the verdicts are written again: a missing right or column may be mended.
    """

    def __init__(self, runs: Runs, most_bytes: int = MOST_BYTES, clock: Clock | None = None) -> None:
        self._runs = runs
        self._most_bytes = most_bytes
        self._clock = clock or MonotonicClock()
        self._lines = float(MOST_LINES)
        self._told_at = self._clock.now()

    async def __call__(self, verdicts: list[Verdict]) -> list[Recorded]:
        """Record verdicts by as few statements as their size allows; one answer for each."""
        recorded: list[Recorded] = []
        for group in self._groups(verdicts):
            recorded += await self._write(group)
        return recorded

    def _groups(self, verdicts: list[Verdict]) -> Iterator[list[Verdict]]:
        group: list[Verdict] = []
        size_bytes = 0
        for verdict in verdicts:
            own_bytes = len(verdict.result) if isinstance(verdict, Done) else 0
            if group and size_bytes + own_bytes > self._most_bytes:
                yield group
                group, size_bytes = [], 0
            group.append(verdict)
            size_bytes += own_bytes
        yield group

    async def _write(self, verdicts: list[Verdict]) -> list[Recorded]:
        """Write a group until its answer is known; a refused one is halved until the guilty stands alone."""
        try:
            # The runs are over and their verdicts have nowhere else to go: given up, all is done again.
            recorded = await until_known(
                lambda: self._runs.record(verdicts),
                (StorageError,),
                lambda error: log.warning("verdicts repeated", verdicts=len(verdicts), error=str(error)),
                known=(Refused,),
            )
        except Refused as error:
            if len(verdicts) == 1:
                return [await self._write_unstorable(verdicts[0], error)]
            middle = len(verdicts) // 2
            return [*await self._write(verdicts[:middle]), *await self._write(verdicts[middle:])]
        await asyncio.sleep(0)  # whoever waits for an end is woken before the log is written
        self._tell(list(zip(verdicts, recorded, strict=True)))
        return recorded

    async def _write_unstorable(self, verdict: Verdict, error: Refused) -> Recorded:
        if isinstance(verdict, Dead) and verdict.failure.reason is Reason.RESULT_UNSTORABLE:
            # The heartbeat will find that nobody holds the run, and have it dispatched again.
            log.error("verdict refused whatever it says", task_id=str(verdict.run.task_id), error=str(error))
            return Recorded(None)
        message = f"the database refuses the {type(verdict).__name__.lower()} verdict: {error}"[:500]
        failure = Failure("ResultUnstorable", message, Reason.RESULT_UNSTORABLE)
        [recorded] = await self._write([Dead(verdict.run, failure)])
        return recorded

    def _tell(self, ends: Sequence[tuple[Verdict, Recorded]]) -> None:
        """Log what became of each run; of successes that come by the dozen, how many of which kind."""
        completed = Counter(verdict.run.kind for verdict, end in ends if end.status is Status.COMPLETED)
        each = self._may_tell(completed.total())
        if not each:
            log.info("completed", tasks=completed.total(), kinds=dict(completed))
        for verdict, end in ends:
            if each or end.status is not Status.COMPLETED:
                _tell_one(verdict, end)

    def _may_tell(self, lines: int) -> bool:
        now = self._clock.now()
        self._lines = min(MOST_LINES, self._lines + MOST_LINES * (now - self._told_at))
        self._told_at = now
        if lines > self._lines:
            return False
        self._lines -= lines
        return True


def _tell_one(verdict: Verdict, recorded: Recorded) -> None:
    run = verdict.run
    said = {"task_id": str(run.task_id), "dispatch": run.dispatch, "kind": run.kind, "attempt": run.attempt}
    if recorded.status is None:
        log.warning("verdict refused, another dispatch has taken over", **said)
        return
    if isinstance(verdict, (Retry, Dead)):
        said["error"] = f"{verdict.failure.type}: {verdict.failure.message}"
    if isinstance(verdict, Retry):
        said["delay_seconds"] = verdict.delay_seconds
    tell = log.warning if recorded.status is Status.FAILED else log.info
    tell(recorded.status.name.lower(), verdict=type(verdict).__name__.lower(), **said)
