"""A handler: the function that does the work of one kind of task, with its types and its policy."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from enum import StrEnum
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec

from pipeline.handlers.errors import PayloadInvalid, ResultInvalid, tell

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.handlers.context import Context

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_KIND = 100
LARGEST_RESULT_BYTES = 1024 * 1024
TIMEOUT_SECONDS = (0.1, 86_400.0)
MOST_RETRIES = 100
HIGHEST_VERSION = 2**31 - 1

_KIND = re.compile(r"[a-z0-9_]+(\.[a-z0-9_-]+)*")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_encoder = msgspec.json.Encoder()


class Mode(StrEnum):
    """Where a handler runs."""

    ASYNC = "async"
    THREAD = "thread"
    PROCESS = "process"


class Policy(msgspec.Struct, frozen=True):
    """How a kind is run; None stands for the process's setting."""

    timeout_seconds: float | None
    max_retries: int | None
    version: int
    mode: Mode


class Handler(Generic[P, R]):
    """A function that serves one kind; calling it calls the function, as unit tests do."""

    def __init__(self, kind: str, function: Callable[P, R], policy: Policy) -> None:
        functools.update_wrapper(self, function)
        self.kind = kind
        self.function = function
        self.policy = policy

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    @property
    def where(self) -> str:
        """Name the function and its module, for messages to people."""
        return f"{self.function.__module__}.{getattr(self.function, '__qualname__', self.function)}"

    @functools.cached_property
    def payload_type(self) -> Any:
        """The annotation of the payload, Any without one; raises what resolving it raises.

        Only this annotation is resolved: that of the context may well be imported for type checkers only.
        """
        parameter = self._parameters[0]
        if parameter.annotation is inspect.Parameter.empty:
            return Any
        only = types.SimpleNamespace(__annotations__={"payload": parameter.annotation})
        names = getattr(inspect.unwrap(self.function), "__globals__", {})
        return typing.get_type_hints(only, names, include_extras=True)["payload"]

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the payload."""
        return msgspec.json.schema(self.payload_type)

    @functools.cached_property
    def invoke(self) -> Callable[[Any, Context], Any]:
        """Call the function with payload and context, whether or not it takes the latter."""
        function: Callable[..., Any] = self.function
        if len(self._parameters) > 1:
            return function
        return lambda payload, _: function(payload)

    def decode(self, payload: bytes) -> object:
        """Read a payload as the handler's type; raises PayloadInvalid."""
        try:
            return self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise PayloadInvalid.of(str(error)) from error
        except RecursionError as error:
            raise PayloadInvalid("JSON is nested too deeply") from error
        except UnicodeDecodeError as error:
            raise PayloadInvalid(f"JSON is not valid UTF-8: {error.reason}, byte {error.start}") from error
        except Exception as error:
            # msgspec passes on what a payload's __post_init__ raises, but for ValueError and TypeError.
            raise PayloadInvalid(tell(error)) from error

    def encode(self, result: object) -> str:
        """Write a result as JSON text of at most 1 MiB; raises ResultInvalid."""
        try:
            text = _encoder.encode(result)
            if len(text) <= LARGEST_RESULT_BYTES:
                return text.decode()
        except Exception as error:
            # Lone surrogates, endless nesting, types msgspec does not know, attributes that raise.
            raise ResultInvalid(
                f"{self.kind}: the result cannot be written as JSON: {tell(error)}"
            ) from error
        raise ResultInvalid(
            f"{self.kind}: the result is {len(text)} bytes of JSON; allowed: {LARGEST_RESULT_BYTES}"
        )

    def problems(self) -> Iterator[str]:
        """Tell all that keeps this handler from being used."""
        for fault in (self._fault_of_kind(), self._fault_of_signature(), *self._faults_of_policy()):
            if fault:
                yield f"{self.where}: {fault}"

    @functools.cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.payload_type)

    @functools.cached_property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())

    def _fault_of_kind(self) -> str:
        if len(self.kind) <= LONGEST_KIND and _KIND.fullmatch(self.kind):
            return ""
        allowed = (
            f"up to {LONGEST_KIND} characters, words of a-z 0-9 _ (- after the first dot) joined by dots"
        )
        return f"kind {self.kind!r}; allowed: {allowed}"

    def _fault_of_signature(self) -> str:
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            return "is a generator; a handler returns its result"
        if not 1 <= len(self._parameters) <= 2 or any(p.kind not in _POSITIONAL for p in self._parameters):  # noqa: PLR2004 - payload and ctx
            return f"takes {inspect.signature(self.function)}; allowed: (payload) or (payload, ctx)"
        try:
            self._decoder, self.schema  # noqa: B018 - building them is the check
        except NameError as error:
            return f"the payload's type is not known at run time: {error}; import it outside TYPE_CHECKING"
        except Exception as error:  # noqa: BLE001 - annotations are user code
            return f"the payload's type cannot be read from JSON: {error}"
        return ""

    def _faults_of_policy(self) -> Iterator[str]:
        low, high = TIMEOUT_SECONDS
        if self.policy.timeout_seconds is not None and not low <= self.policy.timeout_seconds <= high:
            yield f"timeout_seconds={self.policy.timeout_seconds}; allowed: {low} to {high:.0f}"
        if self.policy.max_retries is not None and not 0 <= self.policy.max_retries <= MOST_RETRIES:
            yield f"max_retries={self.policy.max_retries}; allowed: 0 to {MOST_RETRIES}"
        if not 1 <= self.policy.version <= HIGHEST_VERSION:
            yield f"version={self.policy.version}; allowed: 1 to {HIGHEST_VERSION}"


def handler(
    kind: str,
    *,
    timeout_seconds: float | None = None,
    max_retries: int | None = None,
    version: int = 1,
    cpu: bool = False,
) -> Callable[[Callable[P, R]], Handler[P, R]]:
    """Make a function the handler of a kind: `(payload)` or `(payload, ctx)`, async or not.

    An async one runs on the event loop, another one in a thread, and with `cpu` either in a child process.
    Nothing is checked here: `load` tells the problems of all handlers at once.
    """

    def decorate(function: Callable[P, R]) -> Handler[P, R]:
        mode = Mode.ASYNC if inspect.iscoroutinefunction(function) else Mode.THREAD
        policy = Policy(timeout_seconds, max_retries, version, Mode.PROCESS if cpu else mode)
        return Handler(kind, function, policy)

    return decorate
