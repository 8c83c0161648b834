"""How a command ends otherwise than well: one message, and an exit code that scripts can tell apart."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a script may rely on; 130 is Ctrl-C, as everywhere."""

    DONE = 0
    FAILED = 1  # the task ended FAILED or CANCELLED; the service could not start
    WRONG = 2  # arguments or settings that cannot be used, or a request that the API refuses
    RUNNING = 3  # the task had not ended when the time was up
    UNANSWERED = 4  # nobody answers, or an answer says that the service is in trouble or full: repeat


class Failure(Exception):
    """A command cannot do what it was asked to."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.WRONG) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ReplyLost(Failure):
    """The request was sent and may have been carried out, but no good answer came."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.UNANSWERED)
