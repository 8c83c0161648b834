"""The way in: submissions of many requests written together, apart from the requests themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import structlog

from gateway.problems import FieldError, Problem, ProblemType
from storage.errors import LockTimeout
from storage.group_commit import GroupCommit
from storage.model import Accepted, KeyReused, Submission

if TYPE_CHECKING:
    from uuid import UUID

    from gateway.admission import Admission
    from pipeline.ports import Submissions

log = structlog.get_logger()

WRITERS = 2
"""So many groups of a backlog are written at once, for one is made ready while the other is written."""

Batch = Sequence[Submission]
Answer = Accepted | KeyReused
Answers = Sequence[Answer] | LockTimeout
Known = Sequence[Answer | None]
Each = TypeVar("Each")


class Intake:
    """Two lanes of GroupCommit: requests with an idempotency key must not hold up those without.

    Two groups with keys in opposite order would also deadlock; within the one keyed lane of a process,
    groups follow one another, and the ledger sorts each. A third lane reads: what the backlog leaves no room
    for may be the repeat of a request that was accepted.
    """

    def __init__(self, submissions: Submissions, admission: Admission) -> None:
        self._submissions = submissions
        self._admission = admission
        self._plain: GroupCommit[Batch, Answers] = GroupCommit(self._write, writers=WRITERS)
        self._keyed: GroupCommit[Batch, Answers] = GroupCommit(self._write_keyed)
        self._repeated: GroupCommit[Batch, Known] = GroupCommit(self._find_repeated)

    @property
    def waiting(self) -> int:
        """How many submissions are not yet durable."""
        return self._plain.waiting + self._keyed.waiting

    async def submit(self, submission: Submission) -> Accepted:
        """Return once it is durable; who is cancelled only stops waiting, the write goes on.

        Raises Problem for a reused key, LockTimeout, Overloaded, Closed, Refused.
        """
        [accepted] = await self.submit_batch([submission])
        return accepted

    async def submit_batch(self, batch: Batch) -> list[Accepted]:
        """Return, and raise, likewise for the tasks of one request, of which all are written or none."""
        if not await self._admission.admits(batch):
            return await self._answer_repeat(batch)
        lane = self._plain if batch[0].key is None else self._keyed
        answers = await lane.add(batch, _size_bytes(batch), len(batch))
        if isinstance(answers, LockTimeout):
            raise answers
        return [_accepted(answer) for answer in answers]

    async def close(self, grace_seconds: float) -> None:
        """Take nothing on any more; let what waits become durable within the grace."""
        if self.waiting:
            log.info("flushing", submissions=self.waiting)
        lanes = (self._plain, self._keyed, self._repeated)
        await asyncio.gather(*(lane.close(grace_seconds) for lane in lanes))

    async def _answer_repeat(self, batch: Batch) -> list[Accepted]:
        known: Known = (
            [] if batch[0].key is None else await self._repeated.add(batch, _size_bytes(batch), len(batch))
        )
        answers = [answer for answer in known if answer is not None]
        if not answers:
            raise self._admission.refuse(batch)
        return [_accepted(answer) for answer in answers]

    async def _find_repeated(self, group: Sequence[Batch]) -> Sequence[Known]:
        return _by_batch(group, await self._submissions.repeated(_submissions(group)))

    async def _write(self, group: Sequence[Batch]) -> Sequence[Answers]:
        return _by_batch(group, await self._submissions.submit(_submissions(group)))

    async def _write_keyed(self, group: Sequence[Batch]) -> Sequence[Answers]:
        """Write a group; where a key of it is locked elsewhere, one by one, so that only its owner fails."""
        try:
            return await self._write(group)
        except LockTimeout as error:
            if len(group) == 1:
                return [error]
        return [answers for batch in group for answers in await self._write_keyed([batch])]


def _size_bytes(batch: Batch) -> int:
    return sum(len(each.payload) for each in batch)


def _submissions(group: Sequence[Batch]) -> list[Submission]:
    return [submission for batch in group for submission in batch]


def _by_batch(group: Sequence[Batch], answers: Sequence[Each]) -> list[list[Each]]:
    """Divide the answers, one for each submission, among the requests."""
    given = iter(answers)
    return [list(islice(given, len(batch))) for batch in group]


def _accepted(answer: Answer) -> Accepted:
    if isinstance(answer, Accepted):
        return answer
    raise Problem(
        ProblemType.KEY_REUSED,
        f"it was first sent with another body, which became task {answer.task_id}",
        [
            FieldError(
                "Idempotency-Key",
                f"belongs to another body, which became task {answer.task_id}",
                "a new key for a new request",
            )
        ],
    )


def gone(task_id: UUID) -> Problem:
    """Refuse a repeat whose first task is no more."""
    return Problem(ProblemType.GONE, f"task {task_id} was made with this key, and has been pruned")
