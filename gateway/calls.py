"""What a call is to the outside: where it is, what it takes, what it answers.

A call is bound to its handler, and described by the OpenAPI document, from one declaration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
from litestar import Request
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from gateway.problems import ProblemType
from gateway.queries import NOTHING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from litestar.types import ASGIApp, Receive, Scope, Send

    from gateway.bodies import JsonBody
    from gateway.exchange import HttpResponse
    from gateway.queries import Parameter, Query

LEDGER = (
    ProblemType.BUSY,
    ProblemType.NOT_STORABLE,
    ProblemType.UNAVAILABLE,
    ProblemType.OUTCOME_UNKNOWN,
    ProblemType.LATE,
    ProblemType.STOPPING,
    ProblemType.SCHEMA_MISMATCH,
)
"""What any call that asks the ledger may be refused with; a read, too, waits for a migration's locks."""


class Answer(msgspec.Struct, frozen=True):
    """A success: the struct that is its body, an example of it, and its headers with their descriptions."""

    status: int
    description: str
    body: Any
    example: object
    headers: Mapping[str, str] = {}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. Its summary and description are the docstring of the handler it is bound to.

    `name` is the operationId; `problems` are those that do not follow from what the call takes.
    """

    name: str
    tag: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    answers: tuple[Answer, ...]
    problems: tuple[ProblemType, ...] = ()
    query: Query = NOTHING
    headers: Mapping[str, Parameter] = {}
    body: JsonBody[Any] | None = None
    bodies: Mapping[str, object] = {}
    """Examples of the request body, by what they show."""

    def bind(self, function: Callable[..., Awaitable[HttpResponse]]) -> HTTPRouteHandler:
        """Make the route of the call."""
        route = HTTPRouteHandler(
            self.path,
            http_method=self.method,
            status_code=self.answers[0].status,
            middleware=[_directly(function)],
            opt={"call": self},
        )
        return route(function)


def _directly(function: Callable[..., Awaitable[HttpResponse]]) -> Callable[[ASGIApp], ASGIApp]:
    """Call a handler where Litestar would first look for what to convert and to inject: there is nothing.

    A middleware of the route, so that path, caller and errors are Litestar's as ever.
    """

    def instead_of(app: ASGIApp) -> ASGIApp:  # noqa: ARG001 - Litestar names it; it is what is passed by
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            response = await function(Request(scope, receive, send), **scope["path_params"])
            await response(scope, receive, send)

        return call

    return instead_of


def options(routes: Sequence[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """Make the OPTIONS of each path, to be registered first: Litestar's own would name one method only."""
    methods: dict[str, set[str]] = {}
    for route in routes:
        for path in route.paths:
            methods.setdefault(path, {"OPTIONS"}).update(route.http_methods)
    return [_options(path, ", ".join(sorted(allowed))) for path, allowed in methods.items()]


def _options(path: str, allow: str) -> HTTPRouteHandler:
    async def answer() -> Response[None]:
        return Response(None, headers={"allow": allow})

    return HTTPRouteHandler(path, http_method="OPTIONS", status_code=204)(answer)
