"""The OpenAPI document and the pages that show it, all from this process: no other site is asked.

They are open to whoever may connect, also where calls need a token: a browser sends none with a page. They
tell what the API is and which kinds are registered, and nothing of any task.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from litestar import get
from litestar.response.base import ASGIResponse

from gateway.exchange import HttpRequest  # noqa: TC001 - Litestar resolves the annotations
from gateway.problems import PAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar.handlers import HTTPRouteHandler

DOCUMENT = "/schema/openapi.json"

_ASSETS = Path(__file__).with_name("assets")
_VIEWER = "swagger-ui-5.35.0"
_FILES = {
    PAGE: ("docs.html", "text/html"),
    f"{PAGE}/docs.js": ("docs.js", "text/javascript"),
    f"{PAGE}/{_VIEWER}/swagger-ui.css": (f"{_VIEWER}/swagger-ui.css", "text/css"),
    f"{PAGE}/{_VIEWER}/swagger-ui-bundle.js": (f"{_VIEWER}/swagger-ui-bundle.js", "text/javascript"),
}
PUBLIC_PATHS = frozenset({DOCUMENT, *_FILES})

_HEADERS = {
    # The viewer's style sheet has its icons in it, as data: URLs.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


class DocsRoutes:
    """The document and the files of its pages."""

    def __init__(self, document: Mapping[str, object]) -> None:
        self._document = msgspec.json.encode(document)

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind them to their paths."""
        return [get(sorted(PUBLIC_PATHS))(self.show)]

    async def show(self, request: HttpRequest) -> ASGIResponse:
        """Answer a file; what the viewer's version is part of the path of never changes."""
        path = request.scope["path"]
        if path == DOCUMENT:
            body, media_type = self._document, "application/json"
        else:
            name, media_type = _FILES[path]
            body = _read(name)
        lifetime = "public, max-age=31536000, immutable" if _VIEWER in path else "no-cache"
        return ASGIResponse(body=body, media_type=media_type, headers=_HEADERS | {"cache-control": lifetime})


@cache
def _read(name: str) -> bytes:
    return (_ASSETS / name).read_bytes()
