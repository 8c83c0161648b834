"""Who may call: bearer tokens, or, without any, only programs and pages of this machine."""

from __future__ import annotations

import hmac
import re
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_address
from typing import TYPE_CHECKING

from litestar.enums import ScopeType

from gateway.docs import PUBLIC_PATHS
from gateway.problems import CLOSE, Problem, ProblemType
from storage.model import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

    from gateway.settings import GatewaySettings

# Whose tasks a request reads and writes. All tokens open the same, unnamed tenant.
CALLER = Caller()

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
MOST_QUERY_BYTES = 4096

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[0-9a-z.-]+))(?::[0-9]{1,5})?", re.ASCII)


class Doorkeeper:
    """ASGI middleware that lets a request in, or raises Problem: 401, 403, 414 or 421.

    With tokens, each request names one of them, but for PUBLIC_PATHS. Without tokens and without
    ALLOW_ANONYMOUS the settings let the gateway listen on loopback only; a web page could still reach it
    there, by a form, or under a name of its own that it lets resolve to 127.0.0.1. So Host, and Origin where
    there is one, must then be local.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        # Digests are of one length, so comparing them tells nothing of a token's length either.
        self._digests = [sha256(token.encode()).digest() for token in settings.api_tokens]
        self._check = self._choose_check(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] == ScopeType.HTTP and scope["path"] not in OPEN_PATHS:
            if len(scope["query_string"]) > MOST_QUERY_BYTES:
                raise Problem(ProblemType.QUERY_TOO_LONG, f"allowed: up to {MOST_QUERY_BYTES} bytes")
            self._check(scope)
        await self._app(scope, receive, send)

    def _choose_check(self, settings: GatewaySettings) -> Callable[[HTTPScope], None]:
        if settings.api_tokens:
            return self._check_token
        return _check_nothing if settings.allow_anonymous else _check_local

    def _check_token(self, scope: HTTPScope) -> None:
        if scope["path"] in PUBLIC_PATHS:
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = sha256(token.strip(b" ")).digest()
        # All are compared, so that the time does not tell which one came close.
        matches = sum(hmac.compare_digest(digest, known) for known in self._digests)
        if not matches or scheme.lower() != b"bearer":
            raise Problem(
                ProblemType.UNAUTHORIZED,
                "send one header `Authorization: Bearer <token>` with one of API_TOKENS",
                headers={"www-authenticate": 'Bearer realm="baton"', **CLOSE},
            )


def _check_nothing(_scope: HTTPScope) -> None:
    """Let everybody in: ALLOW_ANONYMOUS says that something else keeps strangers out."""


def _check_local(scope: HTTPScope) -> None:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or not _is_local(hosts[0]):
        raise Problem(
            ProblemType.MISDIRECTED,
            "without API_TOKENS the Host header must be localhost or a loopback address",
        )
    for name, value in scope["headers"]:
        if name == b"origin" and not _is_local(value.partition(b"://")[2]):
            raise Problem(
                ProblemType.FOREIGN_ORIGIN, "without API_TOKENS only pages of this machine may call the API"
            )


@lru_cache(maxsize=64)
def _is_local(authority: bytes) -> bool:
    parts = _AUTHORITY.fullmatch(authority.decode("latin-1").lower())
    if parts is None:
        return False
    name = parts["name"] or parts["v6"]
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
