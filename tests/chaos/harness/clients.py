"""The clients of a run: they submit at a steady rate, cancel, replay, look, and repeat what had no answer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import httpx

from tests.chaos.harness.events import CancelAsked, Outcome, ReplayAsked, Seen, Submitted
from tests.chaos.harness.history import now
from tests.chaos.harness.work import draw

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

    from tests.chaos.harness.events import AnyEvent
    from tests.chaos.harness.history import Log
    from tests.chaos.harness.work import Wanted

TICK_SECONDS = 0.1
BATCH = 12
MOST_OPEN = 400
"""Calls under way at most: an outage must not end in a flood of them."""

ANSWER_SECONDS = 8.0
DEADLY_EVERY_SECONDS = 20.0
GIVE_UP_SECONDS = 60.0
"""How long a client repeats a call that is not answered."""


class _Answer(NamedTuple):
    began: float
    outcome: Outcome
    status: int
    body: Any
    headers: httpx.Headers


def _ids(answer: _Answer) -> list[str]:
    tasks = answer.body.get("items", [answer.body]) if answer.outcome == "ok" else []
    return [task["id"] for task in tasks]


class Clients:
    """Everybody who talks to the gateway during a run; half of what is asked comes in batches."""

    def __init__(self, url: str, rng: random.Random, log: Log, tasks_per_second: float) -> None:
        self._rng = rng
        self._log = log
        self._batches_per_tick = tasks_per_second * TICK_SECONDS / 2 / BATCH
        self._singles_per_tick = tasks_per_second * TICK_SECONDS / 2
        self._http = httpx.AsyncClient(
            base_url=f"{url}/api/v1",
            timeout=httpx.Timeout(ANSWER_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
        )
        self._calls: set[asyncio.Task[None]] = set()
        self._known: deque[str] = deque(maxlen=2000)
        self._numbers = 0
        self.accepted = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        await self._http.aclose()

    async def up(self) -> None:
        """Wait until the gateway answers; TimeoutError where it does not in a minute without faults."""
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while True:
                try:
                    await self._http.get("/kinds")
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                else:
                    return

    async def submit(self, until: asyncio.Event) -> None:
        """Ask for work, steadily, until told to stop."""
        singles = batches = 0.0
        next_tick = now()
        next_deadly = next_tick + DEADLY_EVERY_SECONDS
        while not until.is_set():
            singles += self._singles_per_tick
            batches += self._batches_per_tick
            while batches >= 1:
                batches -= 1
                self._open(self._submit([self._draw() for _ in range(BATCH)]))
            while singles >= 1:
                singles -= 1
                self._open(self._submit([self._draw()]))
            if next_tick >= next_deadly:
                next_deadly += DEADLY_EVERY_SECONDS
                self._open(self._submit([self._draw(deadly=True)]))
            if self._known:
                self._open(self._see(self._rng.choice(self._known)))
            next_tick += TICK_SECONDS
            await asyncio.sleep(max(0.0, next_tick - now()))

    async def finish(self, seconds: float) -> int:
        """Let calls that are under way end; how many did not."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=seconds)
        return len(self._calls)

    def _draw(self, *, deadly: bool = False) -> Wanted:
        self._numbers += 1
        return draw(self._rng, f"task-{self._numbers}", deadly=deadly)

    def _open(self, call: Coroutine[Any, Any, None]) -> None:
        if len(self._calls) >= MOST_OPEN:
            call.close()
            return
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _submit(self, wanted: list[Wanted]) -> None:
        key = f"key-{wanted[0].name}" if self._rng.random() < 0.5 else None
        body = wanted[0].body if len(wanted) == 1 else {"tasks": [each.body for each in wanted]}
        path = "/tasks" if len(wanted) == 1 else "/tasks/batch"
        ids = await self._submit_until_known(path, body, wanted, key)
        if ids and key is not None and self._rng.random() < 0.1:
            await self._submit_once(path, body, wanted, key)
        if ids:
            self.accepted += len(ids)
            self._known.extend(ids[:2])
            await self._afterwards(wanted[0], ids[0])

    async def _submit_until_known(
        self, path: str, body: object, wanted: list[Wanted], key: str | None
    ) -> list[str]:
        """Submit; who has a key repeats until the answer is known, who has none must not."""
        until = now() + GIVE_UP_SECONDS
        while now() < until:
            outcome, ids = await self._submit_once(path, body, wanted, key)
            if outcome == "ok" or (outcome == "unknown" and key is None):
                return ids
            await asyncio.sleep(self._rng.uniform(0.2, 0.8))
        return []

    async def _submit_once(
        self, path: str, body: object, wanted: list[Wanted], key: str | None
    ) -> tuple[Outcome, list[str]]:
        headers = {"Idempotency-Key": key} if key else {}

        def submitted(answer: _Answer) -> Submitted:
            return Submitted(
                at=now(),
                by=self._log.by,
                began=answer.began,
                names=[each.name for each in wanted],
                kinds=[each.kind for each in wanted],
                expected=[each.expected for each in wanted],
                key=key,
                outcome=answer.outcome,
                status=answer.status,
                ids=_ids(answer),
                repeated="idempotency-replayed" in answer.headers,
            )

        answer = await self._ask(submitted, "POST", path, json=body, headers=headers)
        return answer.outcome, _ids(answer)

    async def _afterwards(self, wanted: Wanted, task_id: str) -> None:
        """Some are cancelled, at once or a little later; some of those that end badly are replayed."""
        chance = self._rng.random()
        if chance < 0.04:
            await asyncio.sleep(self._rng.choice([0.0, 0.0, 0.05, 0.5, 2.0]))
            await self._cancel(task_id)
            if chance < 0.01:
                await self._replay(task_id)
        elif wanted.kind == "chaos.permanent" and chance < 0.5:
            await self._replay(task_id)

    async def _cancel(self, task_id: str) -> None:
        def cancel_asked(answer: _Answer) -> CancelAsked:
            return CancelAsked(
                at=now(),
                by=self._log.by,
                began=answer.began,
                task=task_id,
                outcome=answer.outcome,
                status=answer.status,
                task_status=answer.body.get("status") if answer.outcome == "ok" else None,
            )

        until = now() + GIVE_UP_SECONDS
        while now() < until:
            answer = await self._ask(cancel_asked, "DELETE", f"/tasks/{task_id}")
            if answer.outcome != "unknown":
                return
            await asyncio.sleep(self._rng.uniform(0.2, 0.8))

    async def _replay(self, task_id: str) -> None:
        """Wait until it has ended badly, then replay it, twice at once as impatient operators do."""
        until = now() + GIVE_UP_SECONDS
        while now() < until:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5))
            task = await self._see(task_id)
            if task is not None and task["status"] == "COMPLETED":
                return
            if task is not None and task["status"] in ("FAILED", "CANCELLED"):
                dispatch = task["dispatch"]
                once = self._replay_once(task_id, dispatch)
                answers = await asyncio.gather(once, self._replay_once(task_id, dispatch))
                if "unknown" not in answers:
                    return

    async def _replay_once(self, task_id: str, dispatch: int) -> Outcome:
        def replay_asked(answer: _Answer) -> ReplayAsked:
            return ReplayAsked(
                at=now(),
                by=self._log.by,
                began=answer.began,
                task=task_id,
                dispatch=dispatch,
                outcome=answer.outcome,
                status=answer.status,
            )

        body = {"dispatch": dispatch, "reason": "chaos"}
        return (await self._ask(replay_asked, "POST", f"/tasks/{task_id}/replay", json=body)).outcome

    async def _see(self, task_id: str) -> Any:
        answer = await self._call("GET", f"/tasks/{task_id}")
        if answer.outcome != "ok":
            return None
        task = answer.body
        event = Seen(
            at=now(),
            by=self._log.by,
            began=answer.began,
            task=task_id,
            task_status=task["status"],
            dispatch=task["dispatch"],
            replay=task["replay"],
        )
        self._log.write(event)
        return task

    async def _ask(
        self, told: Callable[[_Answer], AnyEvent], method: str, path: str, **request: Any
    ) -> _Answer:
        """Call and write down the answer; that of a call cut off by the end of the run stays unknown."""
        answer = _Answer(now(), "unknown", 0, None, httpx.Headers())
        try:
            answer = await self._call(method, path, **request)
        finally:
            self._log.write(told(answer))
        return answer

    async def _call(self, method: str, path: str, **request: Any) -> _Answer:
        began = now()
        try:
            response = await self._http.request(method, path, **request)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return _Answer(began, "refused", 0, None, httpx.Headers())
        except httpx.TransportError:
            return _Answer(began, "unknown", 0, None, httpx.Headers())
        if response.is_success:
            outcome: Outcome = "ok"
        else:
            outcome = "unknown" if response.is_server_error else "refused"
        body = response.json() if response.content else None
        return _Answer(began, outcome, response.status_code, body, response.headers)
