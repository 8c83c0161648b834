"""/dead-letters: what ended badly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import get

from gateway.auth import CALLER
from gateway.exchange import API, HttpRequest, HttpResponse, PathText, respond
from gateway.problems import Problem, ProblemType
from gateway.queries import DEAD_LETTERS, DEFAULT_LIMIT, NOTHING, ROW_ID, from_path
from gateway.views import DeadLetterView, page

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from gateway.deadline import Deadline
    from pipeline.ports import DeadLetters


class DeadLetterRoutes:
    """The calls on dead letters."""

    def __init__(self, dead_letters: DeadLetters, deadline: Deadline) -> None:
        self._dead_letters = dead_letters
        self._deadline = deadline

    def handlers(self) -> list[HTTPRouteHandler]:
        """Bind the calls to their paths."""
        return [
            get(f"{API}/dead-letters")(self.find),
            get(f"{API}/dead-letters/{{dead_letter_id:str}}")(self.show),
        ]

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
        which = from_path("dead_letter_id", dead_letter_id, ROW_ID)
        letter = await self._deadline(self._dead_letters.get(CALLER, which))
        if letter is None:
            raise Problem(ProblemType.NOT_FOUND, f"no dead letter {which}")
        return respond(DeadLetterView.of(letter))
