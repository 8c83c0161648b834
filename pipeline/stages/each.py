"""Carries every run through the same stages, each in its own slot and at its own pace."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import structlog

from pipeline.flow import Stage, Step
from pipeline.slots import Stop
from storage.model import Interrupted, Priority, Recorded, Run, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from pipeline.duty import Duty
    from pipeline.slots import Slots, Stoppable
    from pipeline.stages.execute import Outcome

log = structlog.get_logger()

MOST_VERDICTS = 500
"""How many are recorded by one statement."""

FLUSH_SECONDS = 10.0
"""How long interrupted runs may take to unwind and to get their verdicts recorded."""

AHEAD_SECONDS = 1.0
"""How long a run that was claimed ahead waits for a slot, until another worker may have it."""


class Starting(Protocol):
    """What starts runs: `pipeline.stages.Execute`, or what measures it."""

    def start(self, run: Run, ended: Callable[[Outcome], None]) -> Stoppable:
        """Start one; `ended` hears its outcome, later."""


class _Wave:
    """Runs that were claimed together, under this id: how many of them wait for a slot."""

    def __init__(self, waiting: int, worker_id: UUID) -> None:
        self.waiting = waiting
        self.worker_id = worker_id
        self.started = asyncio.Event()

    def one_less(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self.started.set()


class Each(Stage[list[Run], None]):
    """Starts the runs of a wave, each in a slot; what has ended is judged and recorded together.

    A slow run delays no neighbour, and nothing waits for a timer: while verdicts are being recorded, the next
    ones gather. A run that was claimed ahead waits for a slot, the urgent first, and is given back as
    interrupted when none comes free in time, or when this worker may start no more.
    """

    def __init__(
        self,
        execute: Starting,
        judge: Step[Outcome, Verdict],
        record: Step[list[Verdict], list[Recorded]],
        slots: Slots,
        duty: Duty,
        *,
        ahead_seconds: float = AHEAD_SECONDS,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._execute = execute
        self._judge = judge
        self._record = record
        self._slots = slots
        self._duty = duty
        self._ahead_seconds = ahead_seconds
        self._flush_seconds = flush_seconds
        self._outcomes: list[Outcome] = []
        self._recording: asyncio.Task[None] | None = None
        self._under_way = 0
        self._waiting: dict[Priority, deque[tuple[Run, _Wave]]] = {priority: deque() for priority in Priority}
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def __call__(self, runs: list[Run]) -> None:
        """Start every run, and return when none waits any more."""
        if not runs:
            return
        self._under_way += len(runs)
        self._quiet.clear()
        wave = _Wave(len(runs), self._duty.worker_id)
        for run in runs:
            self._waiting[run.priority].append((run, wave))
        try:
            self._start_waiting()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ahead_seconds):
                    await wave.started.wait()
        finally:
            if wave.waiting:
                self._give_back(wave)

    def _start_waiting(self) -> None:
        """Start what waits, the urgent first, as far as there are slots for it."""
        if not self._duty.fresh:
            return
        for waiting in self._waiting.values():
            while waiting and self._slots.vacant:
                run, wave = waiting.popleft()
                wave.one_less()
                if wave.worker_id == self._duty.worker_id:
                    self._start(run)
                else:
                    # Declared dead meanwhile: the janitor has dispatched it again.
                    self._keep(Interrupted(run))

    def _start(self, run: Run) -> None:
        try:
            running = self._execute.start(run, self._ended)
        except Exception:
            # A bug of ours; its neighbours must start. The heartbeat finds that nobody holds this one.
            log.exception("run not started", task_id=str(run.task_id), kind=run.kind)
            self._let_go([run])
            return
        self._slots.start(run, running)

    def _give_back(self, wave: _Wave) -> None:
        log.info("given back, no slot was free in time", runs=wave.waiting)
        self._slots.claim_no_more_ahead()
        for priority, waiting in self._waiting.items():
            self._waiting[priority] = deque(each for each in waiting if each[1] is not wave)
            for run in (run for run, of in waiting if of is wave):
                self._keep(Interrupted(run))

    def _ended(self, outcome: Outcome) -> None:
        self._keep(outcome)
        self._start_waiting()

    def _keep(self, outcome: Outcome) -> None:
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
            self._let_go([outcome.run for outcome in outcomes])

    def _let_go(self, runs: list[Run]) -> None:
        for run in runs:
            self._slots.release(run.reference)
        self._under_way -= len(runs)
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
