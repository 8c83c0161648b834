"""Handlers do the work of tasks: one function per kind, found by `load`, run by `Runners`.

Those who write handlers need `handler`, `Context`, `Permanent` and `RetryLater`.
"""

from pipeline.handlers.context import Context
from pipeline.handlers.definition import Handler, handler
from pipeline.handlers.errors import HandlersError, PayloadInvalid, Permanent, RetryLater
from pipeline.handlers.registry import Handlers, load

__all__ = [
    "Context",
    "Handler",
    "Handlers",
    "HandlersError",
    "PayloadInvalid",
    "Permanent",
    "RetryLater",
    "handler",
    "load",
]
