"""/health: whether the process lives, and whether it can take work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import get

from gateway.deadline import Deadline
from gateway.exchange import HttpRequest, HttpResponse, respond

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from pipeline.ports import Ledger

LONGEST_READY_SECONDS = 2.0  # probes give up early; so does the answer


class HealthRoutes:
    """The two probes; they need no token and tell nothing that needs one."""

    def __init__(self, ledger: Ledger, request_timeout_seconds: float) -> None:
        self._ledger = ledger
        self._deadline = Deadline(min(request_timeout_seconds, LONGEST_READY_SECONDS))

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the probes to their paths."""
        return [get("/health/live")(self.live), get("/health/ready")(self.ready)]

    async def live(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002 - Litestar's handlers want it
        """Answer: that is the whole proof."""
        return respond({"status": "live"})

    async def ready(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002 - as above
        """Answer 200 when the database answers and its schema fits; otherwise the problem says which."""
        await self._deadline(self._ledger.ready())
        return respond({"status": "ready"})
