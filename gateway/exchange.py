"""What the calls take and give: Litestar's request as it came, and JSON written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from litestar import Request
from litestar.params import FromPath
from litestar.response.base import ASGIResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

HttpRequest: TypeAlias = Request[Any, Any, Any]
HttpResponse: TypeAlias = ASGIResponse
PathText: TypeAlias = FromPath[str]

API = "/api/v1"

_encode = msgspec.json.Encoder().encode


def respond(
    content: object, status: int = 200, headers: Sequence[tuple[str, str]] | None = None
) -> HttpResponse:
    """Answer with JSON, past Litestar's own encoding and merging of headers."""
    return ASGIResponse(body=_encode(content), status_code=status, headers=headers)
