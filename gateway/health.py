"""/health: whether the process lives, and whether it can take work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.calls import LEDGER, Answer, Call
from gateway.deadline import Deadline
from gateway.exchange import HttpRequest, HttpResponse, respond

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from pipeline.ports import Ledger

LONGEST_READY_SECONDS = 2.0  # probes give up early; so does the answer


class Health(msgspec.Struct, frozen=True):
    """What a probe is told when all is well."""

    status: Literal["live", "ready"]


LIVE = Call(
    name="live",
    tag="Health",
    method="GET",
    path="/health/live",
    answers=(Answer(200, "The process lives.", Health, Health("live")),),
)
READY = Call(
    name="ready",
    tag="Health",
    method="GET",
    path="/health/ready",
    answers=(Answer(200, "The database answers, and its schema fits.", Health, Health("ready")),),
    problems=LEDGER,
)


class HealthRoutes:
    """The two probes; they need no token and tell nothing that needs one."""

    def __init__(self, ledger: Ledger, request_timeout_seconds: float) -> None:
        self._ledger = ledger
        self._deadline = Deadline(min(request_timeout_seconds, LONGEST_READY_SECONDS))

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the probes to their paths."""
        return [LIVE.bind(self.live), READY.bind(self.ready)]

    async def live(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002 - Litestar's handlers want it
        """Tell whether the process lives.

        That it answers is the whole proof.
        """
        return respond(Health("live"))

    async def ready(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002 - as above
        """Tell whether it can take work.

        It can when the database answers and its schema fits; otherwise the problem says which.
        """
        await self._deadline(self._ledger.ready())
        return respond(Health("ready"))
