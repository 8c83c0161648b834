"""Examples for the OpenAPI document: answers made of the very views, problems by the very table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from msgspec import UNSET, Raw
from msgspec.structs import replace

from gateway.admission import backlog_full
from gateway.deadline import Late
from gateway.problems import FieldError, Problem, ProblemType, invalid, problem_of
from gateway.views import BatchView, DeadLetterView, KindView, OutboxView, Page, StatusView, TaskView
from pipeline.handlers.definition import Mode
from storage.errors import (
    Closed,
    LockTimeout,
    OutcomeUnknown,
    Overloaded,
    Refused,
    SchemaMismatch,
    Unavailable,
)
from storage.model import Accepted, ErrorEntry, OutboxStatus, Priority, Reason, Status, Submission

_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
_LATER_ID = UUID("01890a5d-ac96-774b-bcce-b30209a98058")
_CREATED_AT = datetime(2030, 1, 31, 12, tzinfo=UTC)
_SUBMISSION = Submission(
    id=_ID, kind="echo", payload='{"n":1}', max_retries=3, timeout_seconds=300.0, tags=("order-17",)
)
_ERROR = ErrorEntry(
    at=_CREATED_AT + timedelta(seconds=2),
    dispatch=1,
    attempt=1,
    type="TimeoutError",
    message="the mail server did not answer",
    reason=Reason.ERROR,
)

NEW_TASK = TaskView.of_new(_SUBMISSION, Accepted(_ID, created_at=_CREATED_AT))
RUNNING_TASK = replace(
    NEW_TASK,
    status=Status.IN_PROGRESS.name,
    cancel_requested=True,
    started_at=_CREATED_AT + timedelta(seconds=1),
)
CANCELLED_TASK = replace(
    NEW_TASK, status=Status.CANCELLED.name, finished_at=_CREATED_AT + timedelta(seconds=1)
)
COMPLETED_TASK = replace(
    NEW_TASK,
    status=Status.COMPLETED.name,
    started_at=_CREATED_AT + timedelta(seconds=1),
    finished_at=_CREATED_AT + timedelta(seconds=2),
    result=Raw(b'{"n":1}'),
)
REPLAYED_TASK = replace(NEW_TASK, dispatch=5, replay=1)
BATCH = BatchView([NEW_TASK, replace(NEW_TASK, id=_LATER_ID)])
TASKS = Page([replace(COMPLETED_TASK, payload=UNSET, result=UNSET)], str(_ID))
STATUS = StatusView(_ID, Status.COMPLETED.name)

OUTBOX_ROW = OutboxView(
    id=42,
    status=OutboxStatus.WAITING.name,
    task_id=_ID,
    dispatch=1,
    priority=Priority.MEDIUM.name,
    route="tasks.medium",
    attempts=0,
    error=None,
    available_at=_CREATED_AT,
    created_at=_CREATED_AT,
)
OUTBOX = Page([replace(OUTBOX_ROW, status=OutboxStatus.FAILED.name, attempts=10, error="NO_ROUTE")], None)
DEAD_LETTER = DeadLetterView(
    id=7,
    reason=Reason.ERROR,
    created_at=_CREATED_AT + timedelta(seconds=2),
    task_id=_ID,
    dispatch=1,
    kind="email.send",
    attempt=1,
    losses=0,
    replay=0,
    errors=(_ERROR,),
)
DEAD_LETTERS = Page([DEAD_LETTER], None)
KINDS = Page(
    [
        KindView(
            kind="sleep",
            version=1,
            description="Sleep without keeping anyone from work.",
            mode=Mode.ASYNC,
            timeout_seconds=3660.0,
            max_retries=3,
            payload_schema={"$ref": "#/$defs/Sleep", "$defs": {"Sleep": {"type": "object"}}},
        )
    ],
    None,
)

PROBLEMS = {
    each.type: each
    for each in (
        Problem(ProblemType.BAD_REQUEST, "the header idempotency-key stands 2 times"),
        Problem(ProblemType.MALFORMED_JSON, "Input data was truncated (byte 16)"),
        Problem(ProblemType.TOO_DEEP, "allowed: up to 64 levels"),
        Problem(ProblemType.UNAUTHORIZED, "send one header `Authorization: Bearer <token>`"),
        Problem(ProblemType.FOREIGN_ORIGIN, "without API_TOKENS only pages of this machine may call the API"),
        Problem(ProblemType.NOT_FOUND, f"no task {_ID}"),
        Problem(ProblemType.NO_SUCH_PATH, "the calls are described at /docs"),
        Problem(ProblemType.METHOD_NOT_ALLOWED, "allowed: GET, OPTIONS, POST"),
        Problem(ProblemType.BODY_TIMEOUT, "the body was not complete after 10 seconds"),
        Problem(ProblemType.CONFLICT, "the task is COMPLETED; there is nothing to cancel"),
        Problem(ProblemType.GONE, f"task {_ID} was made with this key, and has been pruned"),
        Problem(ProblemType.BODY_TOO_LARGE, "allowed: up to 262144 bytes"),
        Problem(ProblemType.QUERY_TOO_LONG, "allowed: up to 4096 bytes"),
        Problem(ProblemType.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json"),
        Problem(
            ProblemType.MISDIRECTED,
            "without API_TOKENS the Host header must be localhost or a loopback address",
        ),
        invalid(FieldError("priority", "Invalid enum value 'HIGHEST'", "HIGH, MEDIUM or LOW")),
        Problem(
            ProblemType.UNKNOWN_KIND,
            "no handler serves the kind 'ehco'; known: echo, fail, sleep",
            [FieldError("kind", "is not known", ("echo", "fail", "sleep"))],
        ),
        Problem(
            ProblemType.KEY_REUSED,
            f"it was first sent with another body, which became task {_ID}",
            [
                FieldError(
                    "Idempotency-Key",
                    f"belongs to another body, which became task {_ID}",
                    "a new key for a new request",
                )
            ],
        ),
        backlog_full(Priority.LOW, 500_000, 1_000_000),
        Problem(ProblemType.HEAD_TOO_LARGE, "allowed: up to 16384 bytes"),
        Problem(ProblemType.CLIENT_GONE, "nobody waits for the answer any more"),
        *map(
            problem_of,
            (
                Exception(),
                Unavailable(),
                OutcomeUnknown(),
                Late(),
                Overloaded(),
                Closed(),
                LockTimeout(),
                Refused(),
                SchemaMismatch(),
            ),
        ),
    )
}
