"""/kinds: what can be submitted, and how it is run."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from gateway import examples
from gateway.calls import Answer, Call
from gateway.exchange import API, HttpRequest, HttpResponse, respond
from gateway.queries import NOTHING
from gateway.views import KindView, Page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar.handlers import HTTPRouteHandler

    from gateway.settings import GatewaySettings
    from pipeline.handlers import Handler

FIND = Call(
    name="findKinds",
    tag="Kinds",
    method="GET",
    path=f"{API}/kinds",
    answers=(Answer(200, "All kinds, on one page.", Page[KindView], examples.KINDS),),
)


class KindRoutes:
    """The call on kinds; a policy that names nothing shows what the settings give."""

    def __init__(self, handlers: Mapping[str, Handler[..., Any]], settings: GatewaySettings) -> None:
        self._page = Page([_view(handler, settings) for handler in handlers.values()], None)

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the call to its path."""
        return [FIND.bind(self.find)]

    async def find(self, request: HttpRequest) -> HttpResponse:
        """List all kinds, with the schema of their payload."""
        NOTHING.read(request.scope)
        return respond(self._page)


def _view(handler: Handler[..., Any], settings: GatewaySettings) -> KindView:
    policy = handler.policy
    by_settings = (settings.task_timeout_seconds, settings.max_retries)
    return KindView(
        kind=handler.kind,
        version=policy.version,
        description=inspect.getdoc(handler.function) or "",
        mode=policy.mode,
        timeout_seconds=by_settings[0] if policy.timeout_seconds is None else policy.timeout_seconds,
        max_retries=by_settings[1] if policy.max_retries is None else policy.max_retries,
        payload_schema=handler.schema,
    )
