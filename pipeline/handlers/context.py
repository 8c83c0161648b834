"""What a handler may know about its run."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID  # noqa: TC003 - msgspec resolves the annotation at run time

import msgspec
import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from storage.model import Run


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a task, as its handler sees it.

    `attempt` counts from 1 and rises with each own failure; `replay` counts replays by operators;
    `losses` counts runs that were lost with their worker. The defaults are for tests of handlers.
    """

    task_id: UUID
    kind: str
    attempt: int = 1
    dispatch: int = 1
    replay: int = 0
    losses: int = 0
    timeout_seconds: float = 300.0
    trace_context: str | None = None

    @classmethod
    def of(cls, run: Run) -> Context:
        """Show a claimed run to its handler."""
        return cls(
            task_id=run.task_id,
            kind=run.kind,
            attempt=run.attempt,
            dispatch=run.dispatch,
            replay=run.replay,
            losses=run.losses,
            timeout_seconds=run.timeout_seconds,
            trace_context=run.trace_context,
        )

    @property
    def idempotency_key(self) -> str:
        """The same in every run until a replay: what a payment API wants, to charge once."""
        return f"{self.task_id}-{self.replay}"

    @property
    def fence(self) -> int:
        """Higher in every later run: a store that refuses a lower one is safe from a run out of time."""
        return self.dispatch

    @property
    def log(self) -> FilteringBoundLogger:
        """A logger that names the task; made on access, so that a context can travel to a child process."""
        log: FilteringBoundLogger = structlog.get_logger().bind(
            task_id=str(self.task_id), dispatch=self.dispatch, kind=self.kind
        )
        return log
