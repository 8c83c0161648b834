"""One log, for people or for machines: structlog and the standard library through the same processors.

A log line never raises, holds no secret, is bounded in size, and costs nothing below the level.
"""

from __future__ import annotations

import enum
import functools
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, TextIO

import msgspec
import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_logger_name

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

    from pipeline.settings import LogFormat, LogLevel

LONGEST_TEXT = 2_000
LONGEST_TRACEBACK = 10_000
LONGEST_SECRET = 2_500
MOST_ITEMS = 50
DEEPEST = 4
MASK = "***"

# Libraries that report what they do; only their warnings concern whoever runs Baton.
NOISY = (
    "asyncio",
    "httpcore",
    "httpx",
    "litestar",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.error",
)
# An error for each attempt to connect and a traceback for each loss; the broker's link says it once.
REPEATED = ("aio_pika", "aiormq")

# Each alternative captures what stays. The quantifiers are bounded: a text that opens a secret and never
# closes it must not cost quadratic time.
_SECRET = re.compile(
    r"""(?ix)
    ( ://[^\s/:@"'<>]{0,200}: ) [^\s"'<>]{1,2000} (?=@)      # amqp://user:password@host
    | \b( bearer\s{1,4} ) [a-z0-9._~+/=-]{8,}
    | ( (?:password|passwd|secret|api_tokens?|baton_token) [\\"']{0,2} \s{0,4} [=:] \s{0,4} )
      (?: "[^"]*" | '[^']*' | [^\s&;]+ )
    """
)
_SECRET_NAME = re.compile(r"(?i)password|passwd|secret|token|authorization|credential")
# Control characters as the pictures that Unicode has for them: ␛ for escape, ␊ for a new line.
_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20)},
    **dict.fromkeys((*range(0x7F, 0xA0), 0x2028, 0x2029), 0x2421),
}


def configure(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (default: standard error), from `level` upwards.

    The format `auto` is for people on a terminal and JSON lines elsewhere. Call it once, at start.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    finish = _finish(
        for_people=log_format == "console" or (log_format == "auto" and terminal), terminal=terminal
    )
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_foreign(finish))
    logging.basicConfig(handlers=[handler], level=number, force=True)
    logging.captureWarnings(capture=True)
    least = dict.fromkeys(NOISY, logging.WARNING) | dict.fromkeys(REPEATED, logging.CRITICAL)
    for name, least_number in least.items():
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(number, least_number))


class _Lines:
    """Writes each line at once; a log that nobody reads any more is no reason to fail a task."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write one line."""
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, a closed file
            return

    debug = info = warning = error = critical = exception = msg


def _foreign(finish: list[Processor]) -> ProcessorFormatter:
    """Format the records of the standard library as our own lines."""
    return ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            add_logger_name,
            ExtraAdder(),
        ],
        processors=[ProcessorFormatter.remove_processors_meta, *finish],
    )


def _finish(*, for_people: bool, terminal: bool) -> list[Processor]:
    """List what turns an event into a line, whoever logged it."""
    first: list[Processor] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        tame,
    ]
    if not for_people:
        return [*first, _as_json]
    colors = terminal and "NO_COLOR" not in os.environ
    # The exception is text by now; left to itself Rich would show local variables, secrets among them.
    console = structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )
    return [*first, _on_one_line, console]


def tame(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make an event of plain, bounded values without secrets: time, level and event first."""
    ordered = {name: event.pop(name, None) for name in ("timestamp", "level", "event")}
    return {name: _value(name, value) for name, value in (ordered | dict(event)).items()}


def redact(text: str) -> str:
    """Mask passwords in URLs, bearer tokens and whatever is assigned to the name of a secret."""
    if text.isalnum():
        return text
    return _SECRET.sub(lambda match: f"{match[match.lastindex or 0]}{MASK}", text)


def _as_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return msgspec.json.encode(event).decode()


def _on_one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make visible what would begin a forged line or steer the terminal; a traceback keeps its lines."""
    return {
        name: value if name == "exception" or not isinstance(value, str) else value.translate(_PICTURES)
        for name, value in event.items()
    }


def _value(name: str, value: object, depth: int = 0) -> object:
    if value is not None and _names_secret(name):
        return MASK
    return _plain(value, depth, LONGEST_TRACEBACK if name == "exception" else LONGEST_TEXT)


@functools.lru_cache(maxsize=1_000)
def _names_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name))


def _plain(value: object, depth: int, longest: int = LONGEST_TEXT) -> object:
    plain: object
    match value:
        case None | bool():
            plain = value
        case str():
            plain = _text(value, longest)
        case enum.Enum():
            plain = value.name
        case int() if -(2**63) <= value < 2**64:
            plain = int(value)
        case float() if math.isfinite(value):
            plain = value
        case bytes() | bytearray():
            plain = _text(value.decode("utf-8", "backslashreplace"), longest)
        case Mapping() | list() | tuple() | AbstractSet():
            plain = _items(value, depth + 1) if depth < DEEPEST else "…"
        case BaseException():
            plain = _text(f"{type(value).__name__}: {_shown(value)}", longest)
        case _:
            plain = _text(_shown(value), longest)
    return plain


def _items(
    value: Mapping[object, object] | list[object] | tuple[object, ...] | AbstractSet[object], depth: int
) -> object:
    few = [item for item, _ in zip(value, range(MOST_ITEMS), strict=False)]
    if isinstance(value, Mapping):
        return {(name := _text(_shown(key), 100)): _value(name, value[key], depth) for key in few}
    return [_plain(item, depth) for item in few]


def _shown(value: object) -> str:
    """Ask an object for its text; objects of handlers may fail even at that."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - user code
        return f"<{type(value).__name__} whose text fails: {type(error).__name__}>"


def _text(text: str, longest: int) -> str:
    """Redact a text and bound it by its middle: a traceback tells at its end what it is about."""
    cut = len(text) - longest
    if cut > 0:
        # Windows of one size: a huge text costs no more, and no secret is cut off from what it is known by.
        half = longest // 2
        window = half + LONGEST_SECRET
        head, tail = redact(text[:window])[:half], redact(text[-window:])[-half:]
        text = f"{head} … {cut} more characters … {tail}"
    else:
        text = redact(text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
