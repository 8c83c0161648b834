"""What commands reach beyond themselves; tests hand in their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    import httpx
    import typer

    from pipeline.bench.ports import Measurements
    from pipeline.settings import Settings


class Serve(Protocol):
    """Runs the roles of a process until told to stop.

    `announce` hears the gateway's URL once it listens, and that for operators.
    """

    def __call__(self, settings: Settings, announce: Callable[[str, str], None]) -> Coroutine[Any, Any, None]:
        """Serve."""


class Outside(NamedTuple):
    """None stands for the real thing: the network, `pipeline.service.serve`, `pipeline.roles`."""

    transport: httpx.BaseTransport | None = None
    serve: Serve | None = None
    open_measurements: Callable[[Settings], AbstractAsyncContextManager[Measurements]] | None = None

    @classmethod
    def of(cls, context: typer.Context) -> Outside:
        """Find what was handed in with the command line."""
        return context.find_object(cls) or cls()
