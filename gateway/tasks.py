"""/tasks: hand over, look up, wait, cancel, replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import examples
from gateway.auth import CALLER
from gateway.bodies import read_json
from gateway.calls import LEDGER, Answer, Call
from gateway.exchange import API, HttpRequest, HttpResponse, PathText, respond
from gateway.intake import gone
from gateway.payloads import IDEMPOTENCY_KEY, NEW_REPLAY, NEW_TASK, TRACEPARENT
from gateway.problems import Problem, ProblemType
from gateway.queries import DEFAULT_LIMIT, NOTHING, TASKS, WAIT, from_path
from gateway.views import Page, StatusView, TaskView
from storage.model import Status, TaskFilter

if TYPE_CHECKING:
    from uuid import UUID

    from litestar.handlers import HTTPRouteHandler

    from gateway.deadline import Deadline
    from gateway.intake import Intake
    from gateway.payloads import Acceptance
    from gateway.waiting import Waiting
    from pipeline.ports import Tasks
    from storage.model import Accepted, Submission, Task

PATH = f"{API}/tasks"
TAG = "Tasks"

REPLAYED = "`true` where an earlier request with the same key was the one that counted."

SUBMIT = Call(
    name="submitTask",
    tag=TAG,
    method="POST",
    path=PATH,
    query=WAIT,
    headers={"Idempotency-Key": IDEMPOTENCY_KEY, "traceparent": TRACEPARENT},
    body=NEW_TASK,
    bodies={
        "at once": {"kind": "echo", "payload": {"n": 1}},
        "later": {"kind": "sleep", "payload": {"seconds": 1}, "delay_seconds": 60},
        "with everything": {
            "kind": "echo",
            "payload": {"n": 1},
            "name": "the first echo",
            "description": "shows every field but delay_seconds",
            "tags": ["order-17"],
            "priority": "HIGH",
            "run_at": "2030-01-31T12:00:00Z",
            "timeout_seconds": 30,
            "max_retries": 5,
        },
    },
    answers=(
        Answer(
            201,
            "The task is durable; with `wait` it may have ended.",
            TaskView,
            examples.NEW_TASK,
            {
                "Location": "The path of the task.",
                "Idempotency-Replayed": REPLAYED,
            },
        ),
    ),
    problems=(
        *LEDGER,
        ProblemType.GONE,
        ProblemType.UNKNOWN_KIND,
        ProblemType.KEY_REUSED,
        ProblemType.BACKLOG_FULL,
        ProblemType.OVERLOADED,
    ),
)
FIND = Call(
    name="findTasks",
    tag=TAG,
    method="GET",
    path=PATH,
    query=TASKS,
    answers=(Answer(200, "A page, newest first.", Page[TaskView], examples.TASKS),),
    problems=LEDGER,
)
SHOW = Call(
    name="showTask",
    tag=TAG,
    method="GET",
    path=f"{PATH}/{{task_id:str}}",
    query=WAIT,
    answers=(Answer(200, "The task.", TaskView, examples.COMPLETED_TASK),),
    problems=(*LEDGER, ProblemType.OVERLOADED),
)
SHOW_STATUS = Call(
    name="showTaskStatus",
    tag=TAG,
    method="GET",
    path=f"{PATH}/{{task_id:str}}/status",
    query=WAIT,
    answers=(Answer(200, "The status.", StatusView, examples.STATUS),),
    problems=(*LEDGER, ProblemType.OVERLOADED),
)
CANCEL = Call(
    name="cancelTask",
    tag=TAG,
    method="DELETE",
    path=f"{PATH}/{{task_id:str}}",
    answers=(
        Answer(200, "It is cancelled, now or before.", TaskView, examples.CANCELLED_TASK),
        Answer(202, "It runs, and was asked to stop.", TaskView, examples.RUNNING_TASK),
    ),
    problems=(*LEDGER, ProblemType.CONFLICT),
)
REPLAY = Call(
    name="replayTask",
    tag=TAG,
    method="POST",
    path=f"{PATH}/{{task_id:str}}/replay",
    body=NEW_REPLAY,
    bodies={
        "once": {"reason": "the address was corrected", "dispatch": 4},
        "whatever its dispatch": {"reason": "the address was corrected"},
    },
    answers=(Answer(200, "The task, handed out again.", TaskView, examples.REPLAYED_TASK),),
    problems=(*LEDGER, ProblemType.CONFLICT),
)


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
            SUBMIT.bind(self.submit),
            FIND.bind(self.find),
            SHOW.bind(self.show),
            SHOW_STATUS.bind(self.show_status),
            CANCEL.bind(self.cancel),
            REPLAY.bind(self.replay),
        ]

    async def submit(self, request: HttpRequest) -> HttpResponse:
        """Hand a task over.

        It is checked against its kind, then written: a 201 means that it is durable. Who sends an
        Idempotency-Key may repeat the request until it is answered; one key makes one task.
        """
        scope = request.scope
        wait_seconds: float = WAIT.read(scope).get("wait", 0.0)
        body = await read_json(scope, request.receive)
        submission = self._acceptance.read(scope, body)
        if wait_seconds:
            view, accepted = await self._submit_and_wait(request, submission, wait_seconds)
        else:
            accepted = await self._deadline(self._intake.submit(submission))
            if accepted.replayed:
                view = TaskView.of(await self._read_first(accepted))
            else:
                view = TaskView.of_new(submission, accepted)
        headers = [(b"location", f"{PATH}/{accepted.task_id}".encode())]
        if accepted.replayed:
            headers.append((b"idempotency-replayed", b"true"))
        return respond(view, 201, headers)

    async def find(self, request: HttpRequest) -> HttpResponse:
        """List tasks, newest first.

        A page may be short, or even empty, and the list still go on: follow `next` until it is null.
        """
        given = TASKS.read(request.scope)
        limit = given.pop("limit", DEFAULT_LIMIT)
        which = TaskFilter(before=given.pop("cursor", None), limit=limit, **given)
        found = await self._deadline(self._tasks.find(CALLER, which))
        cursor = None if found.next is None else str(found.next)
        return respond(Page([TaskView.of(task) for task in found.tasks], cursor))

    async def show(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Show a task.

        With `wait` the answer comes once the task has ended, or when that time is up.
        """
        wait_seconds = WAIT.read(request.scope).get("wait", 0.0)
        which = from_path("task_id", task_id)
        return respond(TaskView.of(await self._read_ended(request, which, wait_seconds)))

    async def show_status(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Show only the status of a task.

        With `wait` the answer comes once the task has ended, or when that time is up.
        """
        wait_seconds = WAIT.read(request.scope).get("wait", 0.0)
        which = from_path("task_id", task_id)
        status = await self._read_status_ended(request, which, wait_seconds)
        return respond(StatusView(which, status.name))

    async def cancel(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Cancel a task, or ask a running one to stop.

        What does not run is cancelled at once, and never starts. A running handler is told, and may still
        complete.
        """
        NOTHING.read(request.scope)
        which = from_path("task_id", task_id)
        task = await self._deadline(self._tasks.cancel(CALLER, which))
        if task is None:
            raise _unknown(which)
        if task.status in (Status.COMPLETED, Status.FAILED):
            raise Problem(ProblemType.CONFLICT, f"the task is {task.status.name}; there is nothing to cancel")
        return respond(TaskView.of(task), 200 if task.status is Status.CANCELLED else 202)

    async def replay(self, request: HttpRequest, task_id: PathText) -> HttpResponse:
        """Hand a FAILED or CANCELLED task out again.

        With `dispatch` only that hand-over is replayed, and the same call twice is one replay: send it
        when you repeat. A replay starts afresh; earlier runs stay in the dead letters.
        """
        NOTHING.read(request.scope)
        which = from_path("task_id", task_id)
        body = await read_json(request.scope, request.receive)
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
                ended = await watch.wait(wait_seconds, request.receive)
                return TaskView.of(ended or await self._read(accepted.task_id)), accepted
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
            ended = await watch.wait(wait_seconds, request.receive)
        return ended or await self._read(task_id)

    async def _read_status_ended(self, request: HttpRequest, task_id: UUID, wait_seconds: float) -> Status:
        """Read a status likewise."""
        if not wait_seconds:
            return await self._read_status(task_id)
        with self._waiting.watch(task_id) as watch:
            status = await self._read_status(task_id)
            if status.terminal:
                return status
            ended = await watch.wait(wait_seconds, request.receive)
        return ended.status if ended else await self._read_status(task_id)

    async def _read(self, task_id: UUID) -> Task:
        task = await self._deadline(self._tasks.get(CALLER, task_id))
        if task is None:
            raise _unknown(task_id)
        return task

    async def _read_first(self, accepted: Accepted) -> Task:
        """Read the task that an earlier request with the same key has made."""
        task = await self._deadline(self._tasks.get(CALLER, accepted.task_id))
        if task is None:
            raise gone(accepted.task_id)
        return task

    async def _read_status(self, task_id: UUID) -> Status:
        statuses = await self._deadline(self._tasks.statuses([task_id]))
        tenant, status = statuses.get(task_id, (None, Status.NEW))
        if tenant != CALLER.tenant:
            raise _unknown(task_id)
        return status


def _unknown(task_id: UUID) -> Problem:
    return Problem(ProblemType.NOT_FOUND, f"no task {task_id}")


def _not_replayable(task: Task) -> Problem:
    return Problem(
        ProblemType.CONFLICT,
        f"the task is {task.status.name} with dispatch {task.dispatch}; "
        "allowed: a FAILED or CANCELLED one, by its present dispatch",
    )
