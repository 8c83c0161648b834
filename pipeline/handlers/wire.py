"""What a worker and its child processes say to each other: msgpack, each message led by its length."""

from __future__ import annotations

import struct
import traceback
from enum import StrEnum

import msgspec

from pipeline.handlers.context import Context  # noqa: TC001 - msgspec resolves the annotation at run time
from pipeline.handlers.errors import (
    ChildError,
    PayloadInvalid,
    Permanent,
    ResultInvalid,
    RetryLater,
    clean,
    describe,
)

LENGTH = struct.Struct("!I")
LONGEST_TRACEBACK = 8_000


class Work(msgspec.Struct, frozen=True, array_like=True):
    """Worker to child: run this."""

    kind: str
    payload: bytes
    context: Context


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Child to worker, once: the handlers are loaded."""


class Returned(msgspec.Struct, frozen=True, tag=True):
    """Child to worker: the handler returned; `result` is JSON text."""

    result: str


class Meaning(StrEnum):
    """What an exception asks for; the class it had in the child may not exist in the worker."""

    ERROR = "error"
    PERMANENT = "permanent"
    RETRY_LATER = "retry_later"
    PAYLOAD_INVALID = "payload_invalid"
    RESULT_INVALID = "result_invalid"


class Raised(msgspec.Struct, frozen=True, tag=True):
    """Child to worker: the handler raised; `traceback` is the child's, its last 8,000 characters."""

    meaning: Meaning
    type_name: str
    message: str
    traceback: str
    seconds: float = 0.0

    @classmethod
    def of(cls, error: BaseException) -> Raised:
        """Take down an exception, for the way to the worker."""
        failure = describe(error)
        trace = "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:]
        return cls(
            meaning=_meaning(error),
            type_name=failure.type,
            message=failure.message,
            traceback=clean(trace, LONGEST_TRACEBACK),
            seconds=error.seconds if isinstance(error, RetryLater) else 0.0,
        )

    def exception(self) -> Exception:
        """Build what the worker raises: our own exceptions as such, any other as ChildError."""
        origin = ChildError(self.type_name, self.message)
        origin.add_note(f"In the child process:\n{self.traceback}")
        if self.meaning is Meaning.ERROR:
            return origin
        error = self._own()
        error.__cause__ = origin
        return error

    def _own(self) -> Exception:
        match self.meaning:
            case Meaning.RETRY_LATER:
                return RetryLater(self.seconds, self.message)
            case Meaning.PAYLOAD_INVALID:
                return PayloadInvalid.of(self.message)
            case Meaning.RESULT_INVALID:
                return ResultInvalid(self.message)
            case _:
                return Permanent(self.message)


Reply = Ready | Returned | Raised

work_decoder = msgspec.msgpack.Decoder(Work)
reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

_encoder = msgspec.msgpack.Encoder()


def frame(message: Work | Reply) -> bytes:
    """Encode one message, its length of 4 bytes first."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def _meaning(error: BaseException) -> Meaning:
    match error:
        case PayloadInvalid():
            return Meaning.PAYLOAD_INVALID
        case ResultInvalid():
            return Meaning.RESULT_INVALID
        case Permanent():
            return Meaning.PERMANENT
        case RetryLater():
            return Meaning.RETRY_LATER
        case _:
            return Meaning.ERROR
