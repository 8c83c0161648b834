"""/tasks/batch: hand many tasks over at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway import examples
from gateway.auth import CALLER
from gateway.bodies import MOST_BATCH_BYTES, read_json
from gateway.calls import LEDGER, Answer, Call
from gateway.exchange import HttpRequest, HttpResponse, respond
from gateway.intake import gone
from gateway.payloads import IDEMPOTENCY_KEY, NEW_BATCH, TRACEPARENT
from gateway.problems import ProblemType
from gateway.queries import NOTHING
from gateway.tasks import PATH, REPLAYED, TAG
from gateway.views import BatchView, TaskView

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from litestar.handlers import HTTPRouteHandler

    from gateway.deadline import Deadline
    from gateway.intake import Intake
    from gateway.payloads import Acceptance
    from pipeline.ports import Tasks
    from storage.model import Submission

SUBMIT_BATCH = Call(
    name="submitBatch",
    tag=TAG,
    method="POST",
    path=f"{PATH}/batch",
    headers={"Idempotency-Key": IDEMPOTENCY_KEY, "traceparent": TRACEPARENT},
    body=NEW_BATCH,
    bodies={
        "two": {
            "tasks": [
                {"kind": "echo", "payload": {"n": 1}},
                {"kind": "sleep", "payload": {"seconds": 1}, "priority": "LOW"},
            ]
        }
    },
    answers=(
        Answer(
            201,
            "All tasks are durable; in the order of the request.",
            BatchView,
            examples.BATCH,
            {"Idempotency-Replayed": REPLAYED},
        ),
    ),
    problems=(
        *LEDGER,
        ProblemType.GONE,
        ProblemType.KEY_REUSED,
        ProblemType.BACKLOG_FULL,
        ProblemType.OVERLOADED,
    ),
)


class BatchRoutes:
    """The call on batches."""

    def __init__(self, tasks: Tasks, acceptance: Acceptance, intake: Intake, deadline: Deadline) -> None:
        self._tasks = tasks
        self._acceptance = acceptance
        self._intake = intake
        self._deadline = deadline

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the call to its path."""
        return [SUBMIT_BATCH.bind(self.submit)]

    async def submit(self, request: HttpRequest) -> HttpResponse:
        """Hand many tasks over, all or none.

        Each is read as `POST /tasks` would read it; where one does not fit, none is written, and `errors`
        names what is wrong with each. One Idempotency-Key serves the whole batch.
        """
        scope = request.scope
        NOTHING.read(scope)
        body = await read_json(scope, request.receive, MOST_BATCH_BYTES)
        batch = await self._acceptance.read_batch(scope, body)
        accepted = await self._deadline(self._intake.submit_batch(batch))
        if accepted[0].replayed:
            views = await self._show_first(batch, [each.task_id for each in accepted])
            return respond(BatchView(views), 201, [(b"idempotency-replayed", b"true")])
        return respond(BatchView(list(map(TaskView.of_new, batch, accepted))), 201)

    async def _show_first(self, batch: Sequence[Submission], first: list[UUID]) -> list[TaskView]:
        """Show what an earlier batch with the same key has made; the payloads are those of the same body."""
        found = await self._deadline(self._tasks.get_many(CALLER, first))
        for task_id in first:
            if task_id not in found:
                raise gone(task_id)
        tasks = (
            replace(found[task_id], payload=submission.payload.encode())
            for task_id, submission in zip(first, batch, strict=True)
        )
        return [TaskView.of(task) for task in tasks]
