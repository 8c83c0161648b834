"""What PostgreSQL says was done, and whether that is committed (protocol 3)."""

from __future__ import annotations

import re
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from tests.chaos.harness.frames import Frames, Ruling, Said

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.harness.frames import Mark

HEADER, BEYOND = ">BI", 1
STARTUP = struct.Struct(">II")
ENCRYPTION_REQUESTS = {80877103, 80877104}  # SSLRequest, GSSENCRequest
PROTOCOL_3 = 3
LONGEST_STARTUP_BYTES = 10_000  # as the server has it; more than that is no startup packet
LONGEST_STATEMENT_BYTES = 65_536
LONGEST_TAG_BYTES = 64

PARSE, BIND, EXECUTE, QUERY, CALL, CLOSE, SYNC = b"PBEQFCS"
COMPLETE, ERROR, EMPTY, SUSPENDED, READY = b"CEIsZ"

_WRITES_IN_CTE = re.compile(
    rb"\bAS\s+(?:(?:NOT\s+)?MATERIALIZED\s+)?\(\s*(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE
)


class Request(NamedTuple):
    """Something the server answers: `last` ends in ReadyForQuery, `writes` is a SELECT that changes rows."""

    last: bool
    writes: bool


class PostgresConversation:
    """Follows a connection from its first byte, since statements are named long before they are executed."""

    def __init__(self) -> None:
        self._requests = Frames(HEADER, BEYOND, b"PBEQFCS", LONGEST_STATEMENT_BYTES)
        self._replies = Frames(HEADER, BEYOND, b"CEIsZ", LONGEST_TAG_BYTES)
        self._startup: bytes | None = b""
        self._negotiating = False
        self._opaque = False
        self._statements: dict[bytes, bool] = {}
        self._portals: dict[bytes, bool] = {}
        self._unanswered: deque[Request] = deque()
        self._said = False  # since the last ReadyForQuery
        self._wrote = False  # in the transaction that is open

    def sent(self, data: bytes) -> None:
        """Take note of the statements, and of the order in which they are asked for."""
        if self._startup is not None:
            data = self._start(self._startup + data)
        if self._opaque or not data:
            return
        for _, kind, body in self._requests.feed(data):
            self._ask(kind, body)

    def received(self, data: bytes) -> Sequence[Mark]:
        """Find what is said to be done: rows changed by a command or in a CTE of it, or a COMMIT of such."""
        if self._negotiating:
            self._negotiating = False
            self._opaque = not data.startswith(b"N")
            return ()
        if self._opaque:
            return ()
        return [
            mark for start, kind, body in self._replies.feed(data) for mark in self._answer(start, kind, body)
        ]

    def _start(self, data: bytes) -> bytes:
        """Read what comes before the first typed message, and give what comes after it."""
        while len(data) >= STARTUP.size:
            length, code = STARTUP.unpack_from(data)
            if code in ENCRYPTION_REQUESTS:
                self._negotiating = True
                data = data[STARTUP.size :]
            elif code >> 16 != PROTOCOL_3 or length > LONGEST_STARTUP_BYTES:
                self._opaque = True  # a CancelRequest, or TLS from the first byte
                self._startup = None
                return b""
            elif len(data) < length:
                break
            else:
                self._startup = None
                return data[length:]
        self._startup = data
        return b""

    def _ask(self, kind: int, body: bytes) -> None:
        if kind == EXECUTE:
            writes = self._portals.get(body.partition(b"\0")[0], False)
            self._unanswered.append(Request(last=False, writes=writes))
        elif kind == BIND:
            portal, statement, _ = body.split(b"\0", 2)
            self._portals[portal] = self._statements.get(statement, False)
        elif kind == PARSE:
            name, _, text = body.partition(b"\0")
            self._statements[name] = _writes(text)
        elif kind == CLOSE:
            names = self._statements if body.startswith(b"S") else self._portals
            names.pop(body[1:].partition(b"\0")[0], None)
        else:
            self._unanswered.append(Request(last=True, writes=kind == QUERY and _writes(body)))

    def _answer(self, start: int, kind: int, body: bytes) -> Iterator[Mark]:
        if kind == READY:
            yield from self._ready(body)
        elif kind == ERROR:
            # What was done since the last ReadyForQuery goes with it, also outside an explicit transaction.
            yield from self._rule(stands=False)
        else:
            writes = self._answered()
            if kind == COMPLETE and self._tells(tag := body.rstrip(b"\0").decode(), writes=writes):
                self._said = True
                yield Said(start, f"CommandComplete {tag}")

    def _ready(self, status: bytes) -> Iterator[Mark]:
        while self._unanswered and not self._unanswered.popleft().last:
            pass  # what stood behind an error has been skipped
        self._wrote = status == b"T" and (self._wrote or self._said)
        yield from self._rule(stands=status == b"I")

    def _rule(self, *, stands: bool) -> Iterator[Mark]:
        if self._said:
            self._said = False
            yield Ruling(stands)

    def _answered(self) -> bool:
        """Take the request that is answered off the list; a simple query may be answered several times."""
        if not self._unanswered:
            return False
        request = self._unanswered[0]
        if not request.last:
            self._unanswered.popleft()
        return request.writes

    def _tells(self, tag: str, *, writes: bool) -> bool:
        """Whether a command did something; one that found no row did not."""
        words = tag.split(" ")
        match words[0]:
            case "INSERT" | "UPDATE" | "DELETE" | "MERGE":
                return words[-1] != "0"
            case "SELECT":
                return writes and words[-1] != "0"
            case "COMMIT":
                return self._wrote
            case _:
                return False


def _writes(text: bytes) -> bool:
    return _WRITES_IN_CTE.search(text) is not None
