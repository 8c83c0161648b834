"""Writes verdicts, and with each the outbox row that follows from it, in one statement for many."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from pipeline.flow import Stage
from storage.backoff import backoff_seconds
from storage.errors import Refused, StorageError
from storage.group_commit import GroupCommit
from storage.model import Dead, Done, Failure, Reason, Recorded, Retry, Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.ports import Runs

log = structlog.get_logger()

FIRST_BACKOFF_SECONDS = 0.05
LONGEST_BACKOFF_SECONDS = 2.0

MOST_LINES = 20
"""Of so many successes written together each has its line; one takes 20 µs, as long as all else of a run."""


class Record(Stage[Verdict, Recorded]):
    """Returns when the verdict is durable, or was refused because a later dispatch had taken over.

    A verdict that the database refuses as data is written once more, as FAILED with `result_unstorable`.
    Whatever else the database says, the verdict is written again: a missing right or column may be mended.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        # What waits here is bounded by the slots: a verdict turned away would be a run done in vain.
        self._commit: GroupCommit[Verdict, Recorded] = GroupCommit(
            self._record, waiting_rows=sys.maxsize, waiting_bytes=sys.maxsize
        )

    async def __call__(self, verdict: Verdict) -> Recorded:
        """Record one verdict."""
        try:
            return await self._write(verdict)
        except Refused as error:
            message = f"the database refuses the {type(verdict).__name__.lower()} verdict: {error}"[:500]
            failure = Failure("ResultUnstorable", message, Reason.RESULT_UNSTORABLE)
            return await self._write(Dead(verdict.run, failure))

    async def _write(self, verdict: Verdict) -> Recorded:
        delays_seconds = backoff_seconds(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        while True:
            try:
                return await self._commit.add(verdict, _size_bytes(verdict))
            except Refused:
                raise
            except StorageError as error:
                # The run is over and its verdict has nowhere else to go: given up, all would be done again.
                log.warning("verdict repeated", task_id=str(verdict.run.task_id), error=str(error))
            await asyncio.sleep(next(delays_seconds))

    async def _record(self, verdicts: Sequence[Verdict]) -> list[Recorded]:
        recorded = await self._runs.record(verdicts)
        _tell(list(zip(verdicts, recorded, strict=True)))
        return recorded


def _size_bytes(verdict: Verdict) -> int:
    return len(verdict.result) if isinstance(verdict, Done) else 0


def _tell(ends: Sequence[tuple[Verdict, Recorded]]) -> None:
    """Log what became of each run; of successes that come by the dozen, how many of which kind."""
    completed = Counter(verdict.run.kind for verdict, end in ends if end.status is Status.COMPLETED)
    many = completed.total() > MOST_LINES
    if many:
        log.info("completed", tasks=completed.total(), kinds=dict(completed))
    for verdict, end in ends:
        if not (many and end.status is Status.COMPLETED):
            _tell_one(verdict, end)


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
