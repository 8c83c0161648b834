"""Carries every run through the same stages, each in its own slot and at its own pace."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog

from pipeline.flow import Stage, Step
from pipeline.slots import Slots, Stop
from storage.model import Recorded, Run

if TYPE_CHECKING:
    from collections.abc import Iterable

log = structlog.get_logger()

FLUSH_SECONDS = 10.0
"""How long interrupted runs may take to unwind and to get their verdicts recorded."""


class Each(Stage[list[Run], None]):
    """Starts the runs of a wave and returns at once: a slow one never delays its neighbours' verdicts."""

    def __init__(self, steps: Step[Run, Recorded], slots: Slots) -> None:
        self._steps = steps
        self._slots = slots

    async def __call__(self, runs: list[Run]) -> None:
        """Start every run in the slot that was reserved for it."""
        for run in runs:
            running = asyncio.create_task(self._carry(run))
            self._slots.start(run, running)
            # Not in a finally of the task: one that is cancelled before its first step never enters it.
            running.add_done_callback(partial(self._free, run))

    def _free(self, run: Run, _running: asyncio.Task[None]) -> None:
        self._slots.release(run.reference)

    async def _carry(self, run: Run) -> None:
        try:
            await self._steps(run)
        except Exception:
            # A bug of ours: the run stays IN_PROGRESS until the heartbeat finds that nobody holds it.
            log.exception("run lost its way", task_id=str(run.task_id), dispatch=run.dispatch, kind=run.kind)

    async def drain(self, grace_seconds: float) -> None:
        """Let runs finish within the grace, interrupt the rest, and wait until their verdicts are in."""
        await _wait(self._slots.running(), grace_seconds)
        interrupted = self._slots.running()
        if interrupted:
            log.info("interrupting what still runs", runs=len(interrupted))
        self._slots.stop_all(Stop.INTERRUPTED)
        await _wait(interrupted, FLUSH_SECONDS)
        late = {running for running in interrupted if not running.done()}
        for running in late:
            running.cancel()
        await _wait(late, 1.0)


async def _wait(running: Iterable[asyncio.Task[None]], timeout_seconds: float) -> None:
    tasks = set(running)
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_seconds)


def each(steps: Step[Run, Recorded], slots: Slots) -> Each:
    """Wrap the steps that every run of a wave goes through, each run in its own slot."""
    return Each(steps, slots)
