"""What clients hand over: the bodies of POST, and how new tasks become submissions."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from gateway.auth import CALLER
from gateway.bodies import MOST_BYTES, JsonBody, header
from gateway.problems import FieldError, Problem, ProblemType, invalid, problem_of
from gateway.queries import Parameter
from pipeline.handlers.errors import PayloadInvalid
from storage.model import Priority, Submission

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from litestar.types import HTTPScope

    from gateway.ids import Ids
    from gateway.settings import GatewaySettings
    from pipeline.handlers import Handler

PriorityName = Annotated[Literal["HIGH", "MEDIUM", "LOW"], Meta(description="HIGH, MEDIUM or LOW")]

_KEY = re.compile(r"[!-~]{1,200}")
# https://www.w3.org/TR/trace-context/#traceparent-header: later versions may append fields, ff is none.
_TRACE = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}(?P<known>-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_MOST_FAULTS = 100


class NewTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /tasks; the payload stays the bytes it came as."""

    kind: Annotated[str, Meta(max_length=100, description="a kind that GET /kinds lists")]
    payload: Annotated[msgspec.Raw, Meta(description="JSON as the kind's schema asks; {} when left out")] = (
        msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    )
    name: Annotated[str, Meta(max_length=200, description="up to 200 characters")] = ""
    description: Annotated[str, Meta(max_length=4000, description="up to 4000 characters")] = ""
    tags: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(max_length=20, description="up to 20 texts of 1 to 64 characters"),
    ] = ()
    priority: PriorityName = "MEDIUM"
    run_at: (
        Annotated[
            datetime, Meta(tz=True, description="RFC 3339 with its offset, such as 2030-01-31T12:00:00Z")
        ]
        | None
    ) = None
    delay_seconds: (
        Annotated[float, Meta(ge=0, le=31_536_000, description="0 to 31536000; not with run_at")] | None
    ) = None
    timeout_seconds: Annotated[float, Meta(ge=0.1, le=86_400, description="0.1 to 86400")] | None = None
    max_retries: Annotated[int, Meta(ge=0, le=100, description="a whole number from 0 to 100")] | None = None


class NewBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /tasks/batch; each task stays as it came, to be read like the body of POST /tasks."""

    tasks: Annotated[
        tuple[msgspec.Raw, ...],
        Meta(min_length=1, max_length=1000, description="1 to 1000 tasks, each as POST /tasks takes it"),
    ]


class NewReplay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /tasks/{id}/replay."""

    reason: Annotated[
        str,
        Meta(
            max_length=500,
            # \S alone means other characters in Python than in JSON Schema: this is what both call no blank.
            pattern=r"[^\s\x1c-\x1f\x85\ufeff]",
            description="1 to 500 characters, not only blanks",
        ),
    ]
    dispatch: (
        Annotated[int, Meta(ge=1, lt=2**31, description="the dispatch of the task that is to be replayed")]
        | None
    ) = None


NEW_TASK = JsonBody(NewTask)
NEW_BATCH = JsonBody(NewBatch)
NEW_REPLAY = JsonBody(NewReplay)


class _Request(NamedTuple):
    """What a request says of all its tasks."""

    key: str | None
    fingerprint: str
    trace_context: str | None

    @classmethod
    def of(cls, scope: HTTPScope, body: bytes) -> _Request:
        key = _key(scope)
        return cls(key, sha256(body).hexdigest() if key else "", _trace_context(scope))


class Acceptance:
    """Turns a request into a Submission, or raises Problem or PayloadInvalid.

    A field the client leaves out is decided here, once: by the kind's policy, or else by the settings.
    """

    def __init__(
        self, handlers: Mapping[str, Handler[..., Any]], ids: Ids, settings: GatewaySettings
    ) -> None:
        self._handlers = handlers
        self._ids = ids
        self._settings = settings

    def read(self, scope: HTTPScope, body: bytes) -> Submission:
        """Check everything that can be known before the database is asked."""
        return self._read(body, _Request.of(scope, body))

    async def read_batch(self, scope: HTTPScope, body: bytes) -> tuple[Submission, ...]:
        """Check a batch likewise; the Problem names what is wrong with each task, up to 100 faults in all.

        Others get their turn as often as if the tasks had come one by one.
        """
        request = _Request.of(scope, body)
        tasks = NEW_BATCH.split(body).tasks
        submissions: list[Submission] = []
        faults: list[FieldError] = []
        read_bytes = 0
        for position, task in enumerate(tasks):
            text = bytes(task)
            try:
                if len(text) > MOST_BYTES:
                    raise invalid(FieldError("body", f"is {len(text)} bytes", f"up to {MOST_BYTES} bytes"))
                first = submissions[0].id if submissions else None
                submissions.append(self._read(text, request, first))
            except (Problem, PayloadInvalid) as error:
                faults += _faults(f"tasks[{position}]", problem_of(error))
            if len(faults) >= _MOST_FAULTS:
                break
            read_bytes += len(text)
            if read_bytes >= MOST_BYTES:
                read_bytes = 0
                await asyncio.sleep(0)
        if faults:
            named = f"the first {_MOST_FAULTS}" if len(faults) >= _MOST_FAULTS else len(faults)
            detail = f"none of {len(tasks)} tasks was taken; faults: {named}"
            raise Problem(ProblemType.INVALID, detail, faults[:_MOST_FAULTS])
        return tuple(submissions)

    def _read(self, body: bytes, request: _Request, batch: UUID | None = None) -> Submission:
        task = NEW_TASK.decode(body)
        handler = self._handlers.get(task.kind)
        if handler is None:
            raise self._unknown(task.kind)
        payload = bytes(task.payload)
        handler.decode(payload)
        policy, settings = handler.policy, self._settings
        return Submission(
            id=self._ids.new(),
            kind=task.kind,
            kind_version=policy.version,
            payload=payload.decode(),
            name=task.name,
            description=task.description,
            tags=task.tags,
            priority=Priority[task.priority],
            run_at=_run_at(task),
            delay_seconds=task.delay_seconds or 0.0,
            timeout_seconds=_first(
                task.timeout_seconds, policy.timeout_seconds, settings.task_timeout_seconds
            ),
            max_retries=int(_first(task.max_retries, policy.max_retries, settings.max_retries)),
            trace_context=request.trace_context,
            tenant=CALLER.tenant,
            key=request.key,
            fingerprint=request.fingerprint,
            batch=batch,
        )

    def _unknown(self, kind: str) -> Problem:
        known = tuple(self._handlers)
        return Problem(
            ProblemType.UNKNOWN_KIND,
            f"no handler serves the kind {kind!r}; known: {', '.join(known)}",
            [FieldError("kind", "is not known", known)],
        )


def _parse_key(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise ValueError
    return text


def _parse_trace(text: str) -> str | None:
    """Read a traceparent, as version 00 has it; what is none is not there, and never refused."""
    found = _TRACE.fullmatch(text)
    return f"00{found['known']}" if found else None


IDEMPOTENCY_KEY = Parameter(
    _parse_key,
    "1 to 200 visible ASCII characters, no blanks",
    {"type": "string", "pattern": f"^{_KEY.pattern}$"},
    "The same for each repeat of a request: one key makes one task, or one batch.",
)
TRACEPARENT = Parameter(
    _parse_trace,
    "W3C Trace Context, such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    {"type": "string"},
    "The trace that the task belongs to; its handler finds it in ctx.trace_context.",
)


def _key(scope: HTTPScope) -> str | None:
    given = header(scope, b"idempotency-key")
    try:
        return None if given is None else IDEMPOTENCY_KEY.parse(given.decode("latin-1"))
    except ValueError as error:
        fault = FieldError("Idempotency-Key", "is not a usable key", IDEMPOTENCY_KEY.allowed)
        raise invalid(fault) from error


def _trace_context(scope: HTTPScope) -> str | None:
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return TRACEPARENT.parse(given[0].decode("latin-1")) if len(given) == 1 else None


def _faults(where: str, problem: Problem) -> list[FieldError]:
    """Say of a task what POST /tasks would say of a body."""
    errors = problem.errors or [FieldError("body", f"{problem.type.title}: {problem.detail}")]
    return [
        msgspec.structs.replace(each, field=where if each.field == "body" else f"{where}.{each.field}")
        for each in errors
    ]


def _run_at(task: NewTask) -> datetime | None:
    if task.run_at is None:
        return None
    if task.delay_seconds is not None:
        raise invalid(FieldError("delay_seconds", "stands beside run_at", "one of the two"))
    if not _EARLIEST <= task.run_at < _LATEST:
        raise invalid(FieldError("run_at", "is out of range", "from the year 1970 to the year 9998"))
    return task.run_at.astimezone(UTC)


def _first(given: float | None, by_kind: float | None, by_settings: float) -> float:
    if given is not None:
        return given
    return by_settings if by_kind is None else by_kind
