"""/tasks: hand over, look up, wait, cancel, replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import delete, get, post
from msgspec.structs import replace

from gateway.auth import CALLER
from gateway.bodies import MOST_BATCH_BYTES, read_json
from gateway.exchange import API, HttpRequest, HttpResponse, PathText, respond
from gateway.payloads import NEW_REPLAY
from gateway.problems import Problem, ProblemType
from gateway.queries import DEFAULT_LIMIT, NOTHING, TASK_ID, TASKS, WAIT, from_path
from gateway.views import BatchView, StatusView, TaskView, page
from storage.model import Status, TaskFilter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from litestar.handlers import HTTPRouteHandler

    from gateway.deadline import Deadline
    from gateway.intake import Intake
    from gateway.payloads import Acceptance
    from gateway.waiting import Waiting
    from pipeline.ports import Tasks
    from storage.model import Accepted, Submission, Task


class TaskRoutes:
    """The calls on tasks. Handlers read the request themselves, so that nothing is converted on the way."""

    def __init__(
        self,
        tasks: Tasks,
        acceptance: Acceptance,
        intake: Intake,
        waiting: Waiting,
        deadline: Deadline,
    ) -> None:
        self._tasks = tasks
        self._acceptance = acceptance
        self._intake = intake
        self._waiting = waiting
        self._deadline = deadline

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the calls to their paths."""
        return [
            post(f"{API}/tasks", status_code=201)(self.submit),
            post(f"{API}/tasks/batch", status_code=201)(self.submit_batch),
            get(f"{API}/tasks")(self.find),
            get(f"{API}/tasks/{{task_id:str}}")(self.show),
            get(f"{API}/tasks/{{task_id:str}}/status")(self.show_status),
            delete(f"{API}/tasks/{{task_id:str}}", status_code=200)(self.cancel),
            post(f"{API}/tasks/{{task_id:str}}/replay", status_code=200)(self.replay),
        ]

    async def submit(self, request: HttpRequest) -> HttpResponse:
        """Hand a task over: 201 once it is durable."""
        scope = request.scope
        wait_seconds: float = WAIT.read(scope).get("wait", 0.0)
        body = await read_json(scope, request.receive, self._deadline.seconds)
        submission = self._acceptance.read(scope, body)
        if wait_seconds:
            view, accepted = await self._submit_and_wait(request, submission, wait_seconds)
        else:
            accepted = await self._deadline(self._intake.submit(submission))
            if accepted.replayed:
                view = TaskView.of(await self._read_first(accepted))
            else:
                view = TaskView.of_new(submission, accepted)
        headers = [("location", f"{API}/tasks/{accepted.task_id}")]
        if accepted.replayed:
            headers.append(("idempotency-replayed", "true"))
        return respond(view, 201, headers)

    async def submit_batch(self, request: HttpRequest) -> HttpResponse:
        """Hand many tasks over, all or none: 201 once they are durable."""
        scope = request.scope
        NOTHING.read(scope)
        body = await read_json(scope, request.receive, self._deadline.seconds, MOST_BATCH_BYTES)
        batch = await self._acceptance.read_batch(scope, body)
        accepted = await self._deadline(self._intake.submit_batch(batch))
        if accepted[0].replayed:
            views = await self._show_first(batch, [each.task_id for each in accepted])
            return respond(BatchView(views), 201, [("idempotency-replayed", "true")])
        return respond(BatchView(list(map(TaskView.of_new, batch, accepted))), 201)

    async def find(self, request: HttpRequest) -> HttpResponse:
        """List tasks, newest first."""
        given = TASKS.read(request.scope)
        limit = given.pop("limit", DEFAULT_LIMIT)
        which = TaskFilter(before=given.pop("cursor", None), limit=limit + 1, **given)
        rows = await self._deadline(self._tasks.find(CALLER, which))
        return respond(page(rows, limit, TaskView.of))

    async def show(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Show a task, with `?wait=` once it has ended or the time is up."""
        wait_seconds = WAIT.read(request.scope).get("wait", 0.0)
        which = from_path("task_id", task_id, TASK_ID)
        return respond(TaskView.of(await self._read_ended(request, which, wait_seconds)))

    async def show_status(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Show only the status of a task, with `?wait=` as above."""
        wait_seconds = WAIT.read(request.scope).get("wait", 0.0)
        which = from_path("task_id", task_id, TASK_ID)
        status = await self._read_status_ended(request, which, wait_seconds)
        return respond(StatusView(which, status.name))

    async def cancel(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Cancel: 200 when it is cancelled now or before, 202 when a running one was asked to stop."""
        NOTHING.read(request.scope)
        which = from_path("task_id", task_id, TASK_ID)
        task = await self._deadline(self._tasks.cancel(CALLER, which))
        if task is None:
            raise _unknown(which)
        if task.status in (Status.COMPLETED, Status.FAILED):
            raise Problem(ProblemType.CONFLICT, f"the task is {task.status.name}; there is nothing to cancel")
        return respond(TaskView.of(task), 200 if task.status is Status.CANCELLED else 202)

    async def replay(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Hand a FAILED or CANCELLED task out again."""
        NOTHING.read(request.scope)
        which = from_path("task_id", task_id, TASK_ID)
        body = await read_json(request.scope, request.receive, self._deadline.seconds)
        asked = NEW_REPLAY.decode(body)
        dispatch = asked.dispatch or (await self._read(which)).dispatch
        task = await self._deadline(self._tasks.replay(CALLER, which, dispatch, asked.reason))
        if task is None:
            raise _not_replayable(await self._read(which))
        return respond(TaskView.of(task))

    async def _submit_and_wait(
        self, request: HttpRequest, submission: Submission, wait_seconds: float
    ) -> tuple[TaskView, Accepted]:
        with self._waiting.watch(submission.id) as watch:
            accepted = await self._deadline(self._intake.submit(submission))
            if not accepted.replayed:
                await watch.wait(wait_seconds, request.receive)
                return TaskView.of(await self._read(accepted.task_id)), accepted
        await self._read_first(accepted)
        return TaskView.of(await self._read_ended(request, accepted.task_id, wait_seconds)), accepted

    async def _read_ended(self, request: HttpRequest, task_id: UUID, wait_seconds: float) -> Task:
        """Read a task when it has ended or the time is up."""
        if not wait_seconds:
            return await self._read(task_id)
        with self._waiting.watch(task_id) as watch:
            task = await self._read(task_id)
            if task.status.terminal:
                return task
            await watch.wait(wait_seconds, request.receive)
        return await self._read(task_id)

    async def _read_status_ended(self, request: HttpRequest, task_id: UUID, wait_seconds: float) -> Status:
        """Read a status likewise."""
        if not wait_seconds:
            return await self._read_status(task_id)
        with self._waiting.watch(task_id) as watch:
            status = await self._read_status(task_id)
            if status.terminal:
                return status
            await watch.wait(wait_seconds, request.receive)
        return await self._read_status(task_id)

    async def _read(self, task_id: UUID) -> Task:
        task = await self._deadline(self._tasks.get(CALLER, task_id))
        if task is None:
            raise _unknown(task_id)
        return task

    async def _read_first(self, accepted: Accepted) -> Task:
        """Read the task that an earlier request with the same key has made."""
        task = await self._deadline(self._tasks.get(CALLER, accepted.task_id))
        if task is None:
            raise _gone(accepted.task_id)
        return task

    async def _show_first(self, batch: Sequence[Submission], first: list[UUID]) -> list[TaskView]:
        """Show what an earlier batch with the same key has made; the payloads are those of the same body."""
        which = TaskFilter(ids=tuple(first), limit=len(first))
        found = {task.id: task for task in await self._deadline(self._tasks.find(CALLER, which))}
        for task_id in first:
            if task_id not in found:
                raise _gone(task_id)
        tasks = (
            replace(found[task_id], payload=submission.payload.encode())
            for task_id, submission in zip(first, batch, strict=True)
        )
        return [TaskView.of(task) for task in tasks]

    async def _read_status(self, task_id: UUID) -> Status:
        statuses = await self._deadline(self._tasks.statuses([task_id]))
        tenant, status = statuses.get(task_id, (None, Status.NEW))
        if tenant != CALLER.tenant:
            raise _unknown(task_id)
        return status


def _unknown(task_id: UUID) -> Problem:
    return Problem(ProblemType.NOT_FOUND, f"no task {task_id}")


def _gone(task_id: UUID) -> Problem:
    return Problem(ProblemType.GONE, f"task {task_id} was made with this key, and has been pruned")


def _not_replayable(task: Task) -> Problem:
    return Problem(
        ProblemType.CONFLICT,
        f"the task is {task.status.name} with dispatch {task.dispatch}; "
        "allowed: a FAILED or CANCELLED one, by its present dispatch",
    )
