"""Every error the gateway answers: RFC 9457 `application/problem+json`, through one table.

Our own code raises Problem; what others raise is looked up in TABLE by its class. What is in neither is a
bug: a 500 that says nothing internal, logged once with its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence  # noqa: TC003 - msgspec resolves the annotation at run time
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import structlog
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.response import Response
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from gateway.deadline import Late
from pipeline.handlers.errors import PayloadInvalid
from storage.errors import (
    Closed,
    LockTimeout,
    OutcomeUnknown,
    Overloaded,
    Refused,
    SchemaMismatch,
    StorageError,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from litestar.connection import Request

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
PAGE = "/docs"  # where a person reads what the calls are
CLOSE = {"connection": "close"}  # what is left of the request is not worth reading


class ProblemType(Enum):
    """The kinds of errors: name in `type`, HTTP status, title, and when a repeat may help."""

    BAD_REQUEST = ("bad-request", 400, "The request is not valid HTTP for this API")
    MALFORMED_JSON = ("malformed-json", 400, "The body is not JSON")
    TOO_DEEP = ("too-deep", 400, "The body is nested too deeply")
    UNAUTHORIZED = ("unauthorized", 401, "A valid token is required")
    FOREIGN_ORIGIN = ("foreign-origin", 403, "Pages of other sites may not call")
    NOT_FOUND = ("not-found", 404, "There is no such thing")
    NO_SUCH_PATH = ("no-such-path", 404, "There is no such path")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "The path does not take this method")
    BODY_TIMEOUT = ("body-timeout", 408, "The request did not arrive in time")
    CONFLICT = ("conflict", 409, "The state does not allow this")
    BUSY = ("busy", 409, "Another request is writing the same", 1)
    GONE = ("gone", 410, "It existed, and has been removed")
    BODY_TOO_LARGE = ("body-too-large", 413, "The body is too large")
    QUERY_TOO_LONG = ("query-too-long", 414, "The query string is too long")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", 415, "The body is not application/json")
    MISDIRECTED = ("misdirected", 421, "This host name is not served here")
    INVALID = ("invalid", 422, "The request does not fit")
    UNKNOWN_KIND = ("unknown-kind", 422, "No handler serves this kind")
    KEY_REUSED = ("key-reused", 422, "The Idempotency-Key belongs to another request")
    NOT_STORABLE = ("not-storable", 422, "The database refuses this data")
    BACKLOG_FULL = ("backlog-full", 429, "Too many tasks wait already", 20)
    HEAD_TOO_LARGE = ("head-too-large", 431, "The request line and headers are too large")
    CLIENT_GONE = ("client-gone", 499, "The client has gone")
    INTERNAL = ("internal", 500, "The gateway failed")
    UNAVAILABLE = ("unavailable", 503, "The database does not answer", 2)
    OUTCOME_UNKNOWN = ("outcome-unknown", 503, "The database's reply was lost", 1)
    LATE = ("late", 503, "The database did not answer in time", 2)
    OVERLOADED = ("overloaded", 503, "Too much is waiting", 1)
    STOPPING = ("stopping", 503, "This process is stopping", 1)
    SCHEMA_MISMATCH = ("schema-mismatch", 503, "The database's schema does not fit", 30)

    def __init__(self, slug: str, status: int, title: str, retry_after_seconds: int | None = None) -> None:
        self.slug = slug
        self.status = status
        self.title = title
        self.retry_after_seconds = retry_after_seconds

    @property
    def uri(self) -> str:
        """Name the type for programs."""
        return f"urn:baton:problem:{self.slug}"


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong with one field, parameter or header, and what is allowed there."""

    field: str
    message: str
    allowed: str | Sequence[str] | None = None


class Problem(Exception):
    """An error as the client will read it."""

    def __init__(
        self,
        problem_type: ProblemType,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.type = problem_type
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        seconds = retry_after_seconds or problem_type.retry_after_seconds
        if seconds is not None:
            self.headers["retry-after"] = str(seconds)


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error, RFC 9457 section 3.1, with the failing fields."""

    type: Annotated[str, msgspec.Meta(extra_json_schema={"enum": [each.uri for each in ProblemType]})]
    title: str
    status: int
    detail: str
    instance: Annotated[str | None, msgspec.Meta(description="the path that was asked")] = None
    errors: tuple[FieldError, ...] = ()


_encoder = msgspec.json.Encoder()


def invalid(*errors: FieldError) -> Problem:
    """Refuse what the client wrote, naming the fields."""
    return Problem(ProblemType.INVALID, "; ".join(f"{each.field}: {each.message}" for each in errors), errors)


def field_error(path: str, message: str) -> FieldError:
    """Name the very field, which msgspec hides in its message where it is unknown or missing."""
    named = re.fullmatch(r"Object (?:contains (unknown)|missing required) field `(.*)`", message, re.DOTALL)
    if not named:
        return FieldError(path or "body", message)
    field = f"{path}.{named[2]}".removeprefix(".")
    return FieldError(field, "is not known" if named[1] else "is missing")


def details(problem: Problem, path: str | None = None) -> ProblemDetails:
    """Show a problem as the client reads it; `path` is the one that was asked."""
    kind = problem.type
    return ProblemDetails(kind.uri, kind.title, kind.status, problem.detail, path, problem.errors)


def body_of(problem: Problem, path: str | None = None) -> bytes:
    """Write a problem as JSON."""
    return _encoder.encode(details(problem, path))


def problem_of(error: Exception) -> Problem:
    """Find the problem of any exception, by its nearest class in TABLE."""
    return next(TABLE[each](error) for each in type(error).__mro__ if each in TABLE)


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a request with the problem of what it raised; Litestar's exception handler for everything."""
    problem = problem_of(error)
    path = request.scope["path"]
    if problem.type is ProblemType.INTERNAL:
        log.error("request failed", method=request.scope["method"], path=path, exc_info=error)
    elif problem.type is ProblemType.NOT_STORABLE:
        log.warning("refused as data", path=path, error=str(error))
    return Response(
        body_of(problem, path),
        status_code=problem.type.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


def _fixed(problem_type: ProblemType, detail: str) -> Callable[[Exception], Problem]:
    return lambda _: Problem(problem_type, detail)


def _of_payload(error: PayloadInvalid) -> Problem:
    return invalid(field_error("payload" + error.path.removeprefix("$"), error.message))


def _of_method(error: HTTPException) -> Problem:
    allowed = (error.headers or {}).get("allow", "")
    return Problem(ProblemType.METHOD_NOT_ALLOWED, f"allowed: {allowed}", headers={"allow": allowed})


def _of_http(error: HTTPException) -> Problem:
    if error.status_code >= HTTP_500_INTERNAL_SERVER_ERROR:
        return _internal(error)
    return Problem(ProblemType.BAD_REQUEST, error.detail)


_internal = _fixed(ProblemType.INTERNAL, "the failure is in the log; nothing more is told here")

TABLE: dict[type, Callable[[Any], Problem]] = {
    Problem: lambda problem: problem,
    PayloadInvalid: _of_payload,
    NotFoundException: _fixed(ProblemType.NO_SUCH_PATH, f"the calls are described at {PAGE}"),
    MethodNotAllowedException: _of_method,
    HTTPException: _of_http,
    Unavailable: _fixed(ProblemType.UNAVAILABLE, "nothing was changed; repeat the request"),
    OutcomeUnknown: _fixed(
        ProblemType.OUTCOME_UNKNOWN,
        "it may or may not have been carried out; repeat the request, a POST with its Idempotency-Key",
    ),
    Late: _fixed(
        ProblemType.LATE,
        "a write may still be carried out; repeat the request, a POST with its Idempotency-Key",
    ),
    Overloaded: _fixed(ProblemType.OVERLOADED, "this process holds as much as it may; come back later"),
    Closed: _fixed(ProblemType.STOPPING, "repeat the request, a POST with its Idempotency-Key"),
    LockTimeout: _fixed(ProblemType.BUSY, "a request with the same key, or for the same task, is under way"),
    Refused: _fixed(ProblemType.NOT_STORABLE, "the request holds a value that cannot be kept"),
    SchemaMismatch: _fixed(ProblemType.SCHEMA_MISMATCH, "an operator has to bring the schema up to date"),
    StorageError: _fixed(ProblemType.UNAVAILABLE, "repeat the request"),
    Exception: _internal,
}
