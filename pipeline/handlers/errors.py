"""What goes wrong around user code, and how it is told.

HandlersError       the handlers of this process cannot be used
Permanent           raised by handlers: no repeat can help
    PayloadInvalid  the payload does not fit the handler's type
    ResultInvalid   what the handler returned cannot be kept as JSON
RetryLater          raised by handlers: repeat then, it costs no attempt
ChildError          any other exception of a handler that ran in a child process
ChildKilled         the child process died under the task
NotStarted          no thread or child process was to be had; the handler was not called
"""

from __future__ import annotations

import re
import signal

from storage.model import Failure, Reason

LONGEST_MESSAGE = 2_000
LONGEST_TYPE_NAME = 200
LONGEST_DELAY_SECONDS = 365 * 86_400

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class HandlersError(Exception):
    """Handlers that cannot be used: one line per problem, with where it is and what is allowed."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Permanent(Exception):
    """Raise it in a handler when no repeat can help: the task is FAILED at once, with a dead letter."""


class PayloadInvalid(Permanent):
    """A payload that does not fit; `path` is the failing field as msgspec names it, `$.address.street`."""

    def __init__(self, message: str, path: str = "$") -> None:
        super().__init__(f"{message} - at `{path}`")
        self.message = message
        self.path = path

    @classmethod
    def of(cls, text: str) -> PayloadInvalid:
        """Split a text of msgspec, which puts the path last unless the whole payload is meant."""
        message, _, path = text.rpartition(" - at `")
        return cls(message, path.removesuffix("`")) if message else cls(text)


class ResultInvalid(Permanent):
    """What a handler returned cannot be kept as JSON."""


class RetryLater(Exception):
    """Raise it in a handler to be started again no sooner than in `seconds`; it costs no attempt.

    Raises ValueError unless 0 <= seconds <= 31,536,000 (a year).
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        if not 0 <= seconds <= LONGEST_DELAY_SECONDS:
            raise ValueError(f"RetryLater: seconds={seconds!r}; allowed: 0 to {LONGEST_DELAY_SECONDS}")
        super().__init__(message or f"asked to be started again in {seconds:g} seconds")
        self.seconds = seconds


class ChildError(Exception):
    """An exception of a handler in a child process, by the name of its type; a note has its traceback."""

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(message)
        self.type_name = type_name


class ChildKilled(Exception):
    """A child process that died under a task: `signal` or `exit_code` tells how, the other one is None."""

    def __init__(self, returncode: int) -> None:
        self.exit_code = returncode if returncode >= 0 else None
        self.signal = -returncode if returncode < 0 else None
        super().__init__(f"the child process died under the task: {ending(returncode)}")


class NotStarted(Exception):
    """No thread or child process was to be had; the handler was not called."""


def describe(error: BaseException) -> Failure:
    """Put an exception into text that is safe to store; never raises.

    The message is cut at 2,000 characters. What a child process raised has the type it had there, also
    where it came as Permanent.
    """
    origin = error.__cause__ if isinstance(error.__cause__, ChildError) else error
    type_name = origin.type_name if isinstance(origin, ChildError) else type(origin).__name__
    return Failure(
        clean(type_name, LONGEST_TYPE_NAME), clean(_message(origin), LONGEST_MESSAGE), _reason(error)
    )


def tell(error: BaseException) -> str:
    """Put type and message of an exception into one text, as safe as `describe`."""
    failure = describe(error)
    return f"{failure.type}: {failure.message}"


def ending(returncode: int) -> str:
    """Tell how a process ended, as subprocess encodes it: exit code, or the negative of a signal."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = "signal"
    return f"killed by {name} ({-returncode})"


def _message(error: BaseException) -> str:
    try:
        text = str(error)
        if isinstance(error, BaseExceptionGroup):  # says only how many; what they are is what counts
            text += ": " + "; ".join(map(tell, error.exceptions))
    except Exception as failure:  # noqa: BLE001 - __str__ is user code
        return f"(no message: its __str__ raised {type(failure).__name__})"
    return text


def clean(text: str, most: int) -> str:
    """Make text storable: NUL and lone surrogates become U+FFFD, what is over `most` characters is cut."""
    text = _UNSTORABLE.sub("\ufffd", text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def _reason(error: BaseException) -> Reason:
    if isinstance(error, ChildKilled):
        return Reason.KILLS_WORKER
    if isinstance(error, ResultInvalid):
        return Reason.RESULT_UNSTORABLE
    return Reason.ERROR
