"""/outbox: hand-overs that wait for the broker, or that no queue takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import examples
from gateway.auth import CALLER
from gateway.calls import LEDGER, Answer, Call
from gateway.exchange import API, HttpRequest, HttpResponse, PathText, respond
from gateway.problems import Problem, ProblemType
from gateway.queries import DEFAULT_LIMIT, NOTHING, OUTBOX, from_path
from gateway.views import OutboxView, Page, page

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from gateway.deadline import Deadline
    from pipeline.ports import Outbox

PATH = f"{API}/outbox"
TAG = "Outbox"

FIND = Call(
    name="findOutboxRows",
    tag=TAG,
    method="GET",
    path=PATH,
    query=OUTBOX,
    answers=(Answer(200, "A page, newest first.", Page[OutboxView], examples.OUTBOX),),
    problems=LEDGER,
)
RETRY = Call(
    name="retryOutboxRow",
    tag=TAG,
    method="POST",
    path=f"{PATH}/{{row_id:str}}/retry",
    answers=(Answer(200, "The row, sent again with its task.", OutboxView, examples.OUTBOX_ROW),),
    problems=(*LEDGER, ProblemType.CONFLICT),
)


class OutboxRoutes:
    """The calls on the outbox."""

    def __init__(self, outbox: Outbox, deadline: Deadline) -> None:
        self._outbox = outbox
        self._deadline = deadline

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the calls to their paths."""
        return [FIND.bind(self.find), RETRY.bind(self.retry)]

    async def find(self, request: HttpRequest) -> HttpResponse:
        """List rows, newest first."""
        given = OUTBOX.read(request.scope)
        limit = given.get("limit", DEFAULT_LIMIT)
        rows = await self._deadline(
            self._outbox.find(CALLER, status=given.get("status"), before=given.get("cursor"), limit=limit + 1)
        )
        return respond(page(rows, limit, OutboxView.of))

    async def retry(self, request: HttpRequest, row_id: PathText) -> HttpResponse:
        """Let a FAILED row be sent again."""
        NOTHING.read(request.scope)
        which = from_path("row_id", row_id)
        row = await self._deadline(self._outbox.retry(CALLER, which))
        if row is None:
            raise await self._refusal(which)
        return respond(OutboxView.of(row))

    async def _refusal(self, row_id: int) -> Problem:
        """Tell a row that is unknown, perhaps sent by now, from one that is not FAILED."""
        rows = await self._deadline(self._outbox.find(CALLER, status=None, before=row_id + 1, limit=1))
        if rows and rows[0].id == row_id:
            return Problem(ProblemType.CONFLICT, f"the row is {rows[0].status.name}; allowed: a FAILED one")
        return Problem(ProblemType.NOT_FOUND, f"no outbox row {row_id}; a confirmed one is gone")
