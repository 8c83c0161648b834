"""Query parameters and ids in paths: what is not understood exactly is refused, naming what is allowed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec

from gateway.problems import FieldError, Problem, ProblemType, invalid
from storage.model import OutboxStatus, Priority, Status

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Mapping

    from litestar.types import HTTPScope

E = TypeVar("E", bound="enum.IntEnum")

DEFAULT_LIMIT = 50
MOST_LIMIT = 200
MOST_WAIT_SECONDS = 60
MOST_TEXT = 200
HIGHEST_ID = 2**63 - 2  # one below the largest bigint, so that an id + 1 is still one

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
# As JSON writes numbers: what clients compute may come as 19.999999999998 or 1e-05.
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)

_Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class Parameter(NamedTuple):
    """How one parameter is read; `parse` raises ValueError where the text is not of the form.

    `schema` is that form for the OpenAPI document, `meaning` what the parameter is for.
    """

    parse: Callable[[str], Any]
    allowed: str | tuple[str, ...]
    schema: Mapping[str, object]
    meaning: str = ""


class Query:
    """Reads a query string whose parameters are all known, none given twice."""

    def __init__(self, **parameters: Parameter) -> None:
        self.parameters: Mapping[str, Parameter] = parameters

    def read(self, scope: HTTPScope) -> dict[str, Any]:
        """Give what is given, converted; raises Problem 422 that names everything wrong."""
        if not scope["query_string"]:
            return {}
        try:
            pairs = parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
        except UnicodeDecodeError as error:
            raise Problem(ProblemType.BAD_REQUEST, "the query string is not UTF-8") from error
        values: dict[str, Any] = {}
        faults: list[FieldError] = []
        for name, text in pairs:
            fault = self._take(values, name, text)
            if fault is not None:
                faults.append(fault)
        if faults:
            raise invalid(*faults)
        return values

    def _take(self, values: dict[str, Any], name: str, text: str) -> FieldError | None:
        parameter = self.parameters.get(name)
        if parameter is None:
            return FieldError(name, "is not a parameter of this call", tuple(self.parameters))
        if name in values:
            return FieldError(name, "is given more than once", "once")
        values[name] = None
        try:
            values[name] = parameter.parse(text)
        except ValueError:
            return FieldError(name, f"{text!r} is not allowed", parameter.allowed)
        return None


def from_path(name: str, text: str) -> Any:
    """Read one of PATHS as strictly as a parameter."""
    parameter = PATHS[name]
    try:
        return parameter.parse(text)
    except ValueError as error:
        raise invalid(FieldError(name, f"{text!r} is not allowed", parameter.allowed)) from error


def _parse_uuid(text: str) -> UUID:
    """Refuse the braces, prefixes and missing hyphens that UUID itself takes."""
    if not _UUID.fullmatch(text):
        raise ValueError
    return UUID(text)


def _parse_instant(text: str) -> datetime:
    try:
        return msgspec.convert(text, _Instant).astimezone(UTC)
    except OverflowError as error:  # the first and last day that datetime knows, in another offset
        raise ValueError from error


def _parse_text(text: str) -> str:
    if not 1 <= len(text) <= MOST_TEXT or "\0" in text:
        raise ValueError
    return text


def _whole(low: int, high: int) -> Parameter:
    def parse(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Parameter(parse, f"a whole number from {low} to {high}", schema)


def _seconds(most: int) -> Parameter:
    def parse(text: str) -> float:
        if not _DECIMAL.fullmatch(text) or float(text) > most:
            raise ValueError
        return float(text)

    schema = {"type": "number", "minimum": 0, "maximum": most}
    return Parameter(parse, f"seconds from 0 to {most}, such as 20 or 0.5", schema)


def _member(names: type[E]) -> Parameter:
    members = {each.name: each for each in names}

    def parse(text: str) -> E:
        if text not in members:
            raise ValueError
        return members[text]

    return Parameter(parse, tuple(members), {"type": "string", "enum": [*members]})


TASK_ID = Parameter(
    _parse_uuid, "a UUID, such as 01890a5d-ac96-774b-bcce-b302099a8057", {"type": "string", "format": "uuid"}
)
ROW_ID = _whole(1, HIGHEST_ID)

PATHS = {"task_id": TASK_ID, "dead_letter_id": ROW_ID, "row_id": ROW_ID}
"""The parameters in paths, by the names that the paths give them."""

_LIMIT = _whole(1, MOST_LIMIT)._replace(meaning=f"How many a page holds; {DEFAULT_LIMIT} when left out.")
_AFTER = "`next` of the page before."
_TEXT = Parameter(
    _parse_text,
    f"1 to {MOST_TEXT} characters, none of them NUL",
    {"type": "string", "minLength": 1, "maxLength": MOST_TEXT, "pattern": "^[^\\u0000]+$"},
)
_INSTANT = Parameter(
    _parse_instant,
    "RFC 3339 with its offset, such as 2030-01-31T12:00:00Z (a + is written %2B)",
    {"type": "string", "format": "date-time"},
)

NOTHING = Query()
WAIT = Query(
    wait=_seconds(MOST_WAIT_SECONDS)._replace(
        meaning="Answer when the task has ended, or when this time is up."
    )
)
TASKS = Query(
    status=_member(Status),
    priority=_member(Priority),
    kind=_TEXT,
    tag=_TEXT._replace(meaning="One of the task's tags."),
    created_from=_INSTANT._replace(meaning="Created then or later."),
    created_to=_INSTANT._replace(meaning="Created earlier."),
    limit=_LIMIT,
    cursor=TASK_ID._replace(meaning=_AFTER),
)
DEAD_LETTERS = Query(kind=_TEXT, task_id=TASK_ID, limit=_LIMIT, cursor=ROW_ID._replace(meaning=_AFTER))
OUTBOX = Query(status=_member(OutboxStatus), limit=_LIMIT, cursor=ROW_ID._replace(meaning=_AFTER))
