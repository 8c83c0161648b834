"""Carries every run through the same stages, each in its own slot and at its own pace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from pipeline.flow import Stage, Step
from pipeline.slots import Stop
from storage.model import Recorded, Run, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.slots import Slots, Stoppable
    from pipeline.stages.execute import Outcome

log = structlog.get_logger()

MOST_VERDICTS = 500
"""How many are recorded by one statement."""

FLUSH_SECONDS = 10.0
"""How long interrupted runs may take to unwind and to get their verdicts recorded."""


class Starting(Protocol):
    """What starts runs: `pipeline.stages.Execute`, or what measures it."""

    def start(self, run: Run, ended: Callable[[Outcome], None]) -> Stoppable:
        """Start one; `ended` hears its outcome, later."""


class Each(Stage[list[Run], None]):
    """Starts the runs of a wave and returns at once; what has ended is judged and recorded together.

    A slow run delays no neighbour, and nothing waits for a timer: while verdicts are being recorded, the next
    ones gather.
    """

    def __init__(
        self,
        execute: Starting,
        judge: Step[Outcome, Verdict],
        record: Step[list[Verdict], list[Recorded]],
        slots: Slots,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._execute = execute
        self._judge = judge
        self._record = record
        self._slots = slots
        self._flush_seconds = flush_seconds
        self._outcomes: list[Outcome] = []
        self._recording: asyncio.Task[None] | None = None
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def __call__(self, runs: list[Run]) -> None:
        """Start every run in the slot that was reserved for it."""
        for run in runs:
            try:
                running = self._execute.start(run, self._ended)
            except Exception:
                # A bug of ours; its neighbours must start. The heartbeat finds that nobody holds this one.
                log.exception("run not started", task_id=str(run.task_id), kind=run.kind)
                self._slots.release(run.reference)
                continue
            self._slots.start(run, running)
            self._under_way += 1
            self._quiet.clear()

    def _ended(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if self._recording is None:
            self._recording = asyncio.create_task(self._record_all())

    async def _record_all(self) -> None:
        try:
            while self._outcomes:
                group = self._outcomes[:MOST_VERDICTS]
                del self._outcomes[:MOST_VERDICTS]
                await self._record_group(group)
        finally:
            self._recording = None

    async def _record_group(self, outcomes: list[Outcome]) -> None:
        try:
            await self._record([await self._judge(outcome) for outcome in outcomes])
        except Exception:
            # A bug of ours: these stay IN_PROGRESS until the heartbeat finds that nobody holds them.
            tasks = [str(outcome.run.task_id) for outcome in outcomes]
            log.exception("runs lost their way", tasks=tasks)
        finally:
            for outcome in outcomes:
                self._slots.release(outcome.run.reference)
            self._under_way -= len(outcomes)
            if not self._under_way:
                self._quiet.set()

    async def drain(self, grace_seconds: float) -> None:
        """Let runs finish within the grace, interrupt the rest, and wait until their verdicts are in."""
        if await self._over_within(grace_seconds):
            return
        log.info("interrupting what still runs", runs=self._under_way)
        self._slots.stop_all(Stop.INTERRUPTED)
        if not await self._over_within(self._flush_seconds) and self._recording is not None:
            self._recording.cancel()
            await asyncio.wait({self._recording}, timeout=1.0)

    async def _over_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True
