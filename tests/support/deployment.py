"""A deployment for measurements without servers: tasks are accepted over HTTP and have ended at once."""

from __future__ import annotations

import itertools
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from storage.measurements import Counters, End, Server
from storage.model import Status
from tests.support.answering import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.answering import Request

AHEAD_SECONDS = 3600.0
TOOK_SECONDS = 0.005


class Deployment:
    """Answers as a gateway does, and is `pipeline.bench.ports.Measurements` of its database.

    The database's clock is AHEAD_SECONDS ahead. A task ends TOOK_SECONDS after it came, and those with a
    `run_at` one after the other, a millisecond apart. `ending` says how the task of a number ends.
    """

    def __init__(self, ending: Callable[[int], Status] = lambda _: Status.COMPLETED) -> None:
        self.asked: list[Request] = []
        self.tasks: list[dict[str, Any]] = []
        self.ended: dict[UUID, End] = {}
        self.replies: Callable[[Request], Reply | None] = lambda _: None
        self.counted = itertools.count()
        self._ending = ending
        self._due = 0

    def answer(self, request: Request) -> Reply:
        self.asked.append(request)
        if (reply := self.replies(request)) is not None:
            return reply
        if request.method == "GET":
            return Reply(200, self._shown(UUID(request.url.partition("?")[0].rpartition("/")[2])))
        body = msgspec.json.decode(request.body)
        shown = [self._accept(task) for task in body.get("tasks", [body])]
        return Reply(201, {"items": shown} if "tasks" in body else shown[0])

    def _accept(self, task: dict[str, Any]) -> dict[str, Any]:
        self.tasks.append(task)
        task_id, status = UUID(int=len(self.tasks)), self._ending(len(self.tasks))
        at = time.time() + AHEAD_SECONDS + TOOK_SECONDS
        if "run_at" in task:
            self._due += 1
            at = datetime.fromisoformat(task["run_at"]).timestamp() + self._due / 1000
        completed = status is Status.COMPLETED
        self.ended[task_id] = End(status, at if status.terminal else None, completed)
        return self._shown(task_id)

    def _shown(self, task_id: UUID) -> dict[str, Any]:
        end = self.ended[task_id]
        errors = [{"message": "boom"}] if end.status is Status.FAILED else []
        return {"id": str(task_id), "status": end.status.name, "errors": errors, "payload": None}

    async def clock_seconds(self) -> float:
        return time.time() + AHEAD_SECONDS

    async def server(self) -> Server:
        return Server("18.4", "baton", "on", "on")

    async def counters(self) -> Counters:
        """Every task costs 2,000 bytes and three transactions; a look itself costs one commit elsewhere."""
        tasks, looks = len(self.tasks), next(self.counted)
        return Counters(
            wal_bytes=2_000 * tasks,
            commits=tasks,
            full_page_images=0,
            commits_elsewhere=looks,
            transactions=3 * tasks,
        )

    async def running(self, task_ids: Sequence[UUID]) -> bool:
        return any(not self.ended[task_id].status.terminal for task_id in task_ids)

    async def ends(self, task_ids: Sequence[UUID]) -> dict[UUID, End]:
        return {task_id: self.ended[task_id] for task_id in task_ids if task_id in self.ended}

    async def tasks_without(self, tag: str, from_seconds: float, to_seconds: float) -> int:
        assert from_seconds <= to_seconds
        return sum(tag not in task["tags"] for task in self.tasks)
