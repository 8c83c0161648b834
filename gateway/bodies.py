"""Request bodies: bounded, in time, JSON by name and by nature, and nothing in them that cannot be kept.

Litestar decodes a body before a handler sees it: it takes text/plain for JSON, turns "5" into 5, answers 500
to broken UTF-8 and loses the payload's bytes. So the gateway reads and decodes bodies itself.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from gateway.problems import CLOSE, FieldError, Problem, ProblemType, field_error, invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from litestar.types import HTTPScope, Receive

T = TypeVar("T")

MOST_BYTES = 256 * 1024
MOST_BATCH_BYTES = 16 * MOST_BYTES
MOST_DEPTH = 64
MOST_FAULTS = 20

_LENGTH = re.compile(rb"[0-9]{1,18}")

# A closing quote may be missing: then the rest is one string, or an unclosed one costs quadratic time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[{]}", b"[[]]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_STEP = {ord("["): 1, ord("]"): -1}

_RARE_ESCAPE = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")
# In this order: pairs of surrogates are well, a lone half or NUL is not, any other escape is skipped.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<bad>\\u(?:[dD][89a-fA-F]..|0000))|\\.", re.DOTALL
)
_ZERO_DIGITS = bytes.maketrans(b"0123456789", b"0000000000")
_LONG_NUMBER = b"0" * 19  # the digits of the largest int64
_INT64 = range(-(2**63), 2**63)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def header(scope: HTTPScope, name: bytes) -> bytes | None:
    """Read a header that may stand only once."""
    values = [value for given, value in scope["headers"] if given == name]
    if len(values) > 1:
        raise Problem(ProblemType.BAD_REQUEST, f"the header {name.decode()} stands {len(values)} times")
    return values[0] if values else None


async def read_json(scope: HTTPScope, receive: Receive, most_bytes: int = MOST_BYTES) -> bytes:
    """Read the bytes of a JSON body; raises Problem: 400, 413, 415, or 499 for a client that left.

    How long it may take is watched where it arrives, in `gateway.wire`.
    """
    _check_headers(scope, most_bytes)
    return await _collect(receive, most_bytes)


def _check_headers(scope: HTTPScope, most_bytes: int) -> None:
    media_type = header(scope, b"content-type")
    if media_type != b"application/json" and not _is_json(media_type or b""):
        raise _unsupported("send Content-Type: application/json")
    encoding = header(scope, b"content-encoding")
    if encoding not in (None, b"identity"):
        raise _unsupported("send the body without Content-Encoding")
    length = header(scope, b"content-length")
    if length is not None:
        if not _LENGTH.fullmatch(length):
            raise Problem(ProblemType.BAD_REQUEST, "Content-Length is not a number of bytes", headers=CLOSE)
        if int(length) > most_bytes:
            raise _too_large(most_bytes)


def _is_json(media_type: bytes) -> bool:
    """Accept parameters that say what JSON is anyway: charset=utf-8."""
    essence, *parameters = (part.strip() for part in media_type.lower().split(b";"))
    return essence == b"application/json" and all(
        parameter in (b"", b"charset=utf-8", b'charset="utf-8"') for parameter in parameters
    )


def _unsupported(detail: str) -> Problem:
    return Problem(ProblemType.UNSUPPORTED_MEDIA_TYPE, detail, headers=CLOSE)


def _too_large(most_bytes: int) -> Problem:
    return Problem(ProblemType.BODY_TOO_LARGE, f"allowed: up to {most_bytes} bytes", headers=CLOSE)


async def _collect(receive: Receive, most_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Problem(ProblemType.CLIENT_GONE, "the connection closed before the body was complete")
        body += message["body"]
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
        if not message["more_body"]:
            return bytes(body)


class JsonBody(Generic[T]):
    """Decodes bodies as one struct; its fields' Meta descriptions say what is allowed in them."""

    def __init__(self, struct: type[T]) -> None:
        self.struct = struct
        self._decoder = msgspec.json.Decoder(struct)
        schema = msgspec.json.schema_components([struct])[1][struct.__name__]
        self._allowed = {name: _allowed(each) for name, each in schema["properties"].items()}

    def decode(self, body: bytes) -> T:
        """Read a body as the struct; raises Problem: 400 with the position, or 422 with the field."""
        _check_depth(body)
        _check_values(body)
        return self.split(body)

    def split(self, body: bytes) -> T:
        """Read likewise a body whose parts are msgspec.Raw, each to be decoded, and so checked, by itself."""
        try:
            body.decode()
            return self._decoder.decode(body)
        except RecursionError as error:
            raise _too_deep() from error
        except msgspec.ValidationError as error:
            first = self._explain(str(error))
            raise invalid(first, *self._unknown(body, but=first.field)) from error
        except UnicodeDecodeError as error:
            raise Problem(
                ProblemType.MALFORMED_JSON, f"not UTF-8: {error.reason} (byte {error.start})"
            ) from error
        except msgspec.DecodeError as error:
            where = "" if "(byte " in str(error) else f" (byte {len(body)})"
            raise Problem(ProblemType.MALFORMED_JSON, f"{error}{where}") from error

    def _unknown(self, body: bytes, but: str) -> list[FieldError]:
        """Name the fields that nobody knows, but for one: the decoder stops at the first fault it meets."""
        try:
            given = msgspec.json.decode(body)
        except msgspec.DecodeError:
            return []
        names = (name for name in (given if isinstance(given, dict) else ()) if name not in self._allowed)
        faults = (FieldError(name, "is not known", tuple(self._allowed)) for name in names if name != but)
        return list(islice(faults, MOST_FAULTS - 1))

    def _explain(self, text: str) -> FieldError:
        message, _, path = text.partition(" - at `$")
        error = field_error(path.strip("`").removeprefix("."), message)
        name = re.split(r"[.\[]", error.field, maxsplit=1)[0]
        return msgspec.structs.replace(error, allowed=self._allowed.get(name, tuple(self._allowed)))


def _allowed(schema: dict[str, Any]) -> str:
    """Read the description of a field, which stands beside the null of an optional one."""
    return str(schema.get("description") or schema["anyOf"][0]["description"])


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before any decoder recurses into it."""
    if body.count(b"[") + body.count(b"{") <= MOST_DEPTH:
        return
    brackets = _STRING.sub(b"", body).translate(_BRACKETS, _NO_BRACKETS)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MOST_DEPTH:
        raise _too_deep()


def _too_deep() -> Problem:
    return Problem(ProblemType.TOO_DEEP, f"allowed: up to {MOST_DEPTH} levels")


def _check_values(body: bytes) -> None:
    """Refuse escapes that PostgreSQL cannot show as JSON, and integers that no driver passes on."""
    suspicious = _LONG_NUMBER in body.translate(_ZERO_DIGITS) or (
        _RARE_ESCAPE.search(body) and any(escape["bad"] for escape in _ESCAPE.finditer(body))
    )
    if not suspicious:
        return
    try:
        value = json.loads(body, object_pairs_hook=_Pairs, parse_int=_parse_int)
    except ValueError:
        return  # not JSON; the decoder tells where
    faults = [FieldError(path or "body", message) for path, message in _faults(value, "")]
    if faults:
        raise invalid(*faults[:MOST_FAULTS])


class _Pairs(list[tuple[str, Any]]):
    """An object with all its members: a second one of the same name must not hide the first."""


def _parse_int(digits: str) -> int:
    return int(digits) if len(digits) <= len(str(_INT64.start)) else _INT64.stop


def _faults(value: object, path: str) -> Iterator[tuple[str, str]]:
    match value:
        case _Pairs():
            for name, member in value:
                if _UNSTORABLE.search(name):
                    yield path, "a name holds NUL or half a surrogate pair; allowed: other Unicode text"
                else:
                    yield from _faults(member, f"{path}.{name}".removeprefix("."))
        case list():
            for position, member in enumerate(value):
                yield from _faults(member, f"{path}[{position}]")
        case str() if _UNSTORABLE.search(value):
            yield path, "holds NUL or half a surrogate pair; allowed: other Unicode text"
        case int() if value not in _INT64:
            yield path, "allowed: integers of 64 bits, from -9223372036854775808 to 9223372036854775807"
