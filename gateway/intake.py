"""The way in: submissions of many requests written together, apart from the requests themselves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from gateway.problems import FieldError, Problem, ProblemType
from storage.errors import LockTimeout
from storage.group_commit import GroupCommit
from storage.model import Accepted, KeyReused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.ports import Submissions
    from storage.model import Submission

log = structlog.get_logger()

Answer = Accepted | KeyReused | LockTimeout


class Intake:
    """Two lanes of GroupCommit: submissions with an idempotency key must not hold up those without.

    Two groups with keys in opposite order would also deadlock; within the one keyed lane of a process,
    groups follow one another, and the ledger sorts each.
    """

    def __init__(self, submissions: Submissions) -> None:
        self._submissions = submissions
        self._plain: GroupCommit[Submission, Answer] = GroupCommit(submissions.submit)
        self._keyed: GroupCommit[Submission, Answer] = GroupCommit(self._write_keyed)

    @property
    def waiting(self) -> int:
        """How many submissions are not yet durable."""
        return self._plain.waiting + self._keyed.waiting

    async def submit(self, submission: Submission) -> Accepted:
        """Return once it is durable; who is cancelled only stops waiting, the write goes on.

        Raises Problem for a reused key, LockTimeout, Overloaded, Closed, Refused.
        """
        lane = self._plain if submission.key is None else self._keyed
        answer = await lane.add(submission, len(submission.payload))
        if isinstance(answer, Accepted):
            return answer
        if isinstance(answer, LockTimeout):
            raise answer
        raise Problem(
            ProblemType.KEY_REUSED,
            f"it was first sent with another body, which became task {answer.task_id}",
            [FieldError("Idempotency-Key", "belongs to another body", "a new key for a new request")],
        )

    async def close(self, grace_seconds: float) -> None:
        """Take nothing on any more; let what waits become durable within the grace."""
        if self.waiting:
            log.info("flushing", submissions=self.waiting)
        await asyncio.gather(self._plain.close(grace_seconds), self._keyed.close(grace_seconds))

    async def _write_keyed(self, group: Sequence[Submission]) -> Sequence[Answer]:
        """Write a group; where a key of it is locked elsewhere, one by one, so that only its owner fails."""
        try:
            return await self._submissions.submit(group)
        except LockTimeout as error:
            if len(group) == 1:
                return [error]
        return [answer for each in group for answer in await self._write_keyed([each])]
