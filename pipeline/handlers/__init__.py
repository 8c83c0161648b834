"""Handlers do the work of tasks: one function per kind, found by `load`, run by `Runners`.

Those who write handlers need `handler`, `Context`, `Permanent` and `RetryLater`.
"""

from pipeline.handlers.children import InChild
from pipeline.handlers.context import Context
from pipeline.handlers.definition import Handler, Mode, Policy, handler
from pipeline.handlers.errors import (
    ChildError,
    ChildKilled,
    HandlersError,
    NotStarted,
    PayloadInvalid,
    Permanent,
    ResultInvalid,
    RetryLater,
    describe,
)
from pipeline.handlers.registry import Handlers, load
from pipeline.handlers.runners import InThread, OnLoop, Runner, Runners

__all__ = [
    "ChildError",
    "ChildKilled",
    "Context",
    "Handler",
    "Handlers",
    "HandlersError",
    "InChild",
    "InThread",
    "Mode",
    "NotStarted",
    "OnLoop",
    "PayloadInvalid",
    "Permanent",
    "Policy",
    "ResultInvalid",
    "RetryLater",
    "Runner",
    "Runners",
    "describe",
    "handler",
    "load",
]
