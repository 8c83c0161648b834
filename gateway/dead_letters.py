"""/dead-letters: what ended badly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import examples
from gateway.auth import CALLER
from gateway.calls import LEDGER, Answer, Call
from gateway.exchange import API, HttpRequest, HttpResponse, PathText, respond
from gateway.problems import Problem, ProblemType
from gateway.queries import DEAD_LETTERS, DEFAULT_LIMIT, NOTHING, from_path
from gateway.views import DeadLetterView, Page, page

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from gateway.deadline import Deadline
    from pipeline.ports import DeadLetters

PATH = f"{API}/dead-letters"
TAG = "Dead letters"

FIND = Call(
    name="findDeadLetters",
    tag=TAG,
    method="GET",
    path=PATH,
    query=DEAD_LETTERS,
    answers=(Answer(200, "A page, newest first.", Page[DeadLetterView], examples.DEAD_LETTERS),),
    problems=LEDGER,
)
SHOW = Call(
    name="showDeadLetter",
    tag=TAG,
    method="GET",
    path=f"{PATH}/{{dead_letter_id:str}}",
    answers=(Answer(200, "The dead letter.", DeadLetterView, examples.DEAD_LETTER),),
    problems=LEDGER,
)


class DeadLetterRoutes:
    """The calls on dead letters."""

    def __init__(self, dead_letters: DeadLetters, deadline: Deadline) -> None:
        self._dead_letters = dead_letters
        self._deadline = deadline

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the calls to their paths."""
        return [FIND.bind(self.find), SHOW.bind(self.show)]

    async def find(self, request: HttpRequest) -> HttpResponse:
        """List dead letters, newest first."""
        given = DEAD_LETTERS.read(request.scope)
        limit = given.get("limit", DEFAULT_LIMIT)
        rows = await self._deadline(
            self._dead_letters.find(
                CALLER,
                task_id=given.get("task_id"),
                kind=given.get("kind"),
                before=given.get("cursor"),
                limit=limit + 1,
            )
        )
        return respond(page(rows, limit, DeadLetterView.of))

    async def show(self, request: HttpRequest, dead_letter_id: PathText) -> HttpResponse:
        """Show one, with the raw bytes of a message that nobody could read."""
        NOTHING.read(request.scope)
        which = from_path("dead_letter_id", dead_letter_id)
        letter = await self._deadline(self._dead_letters.get(CALLER, which))
        if letter is None:
            raise Problem(ProblemType.NOT_FOUND, f"no dead letter {which}")
        return respond(DeadLetterView.of(letter))
