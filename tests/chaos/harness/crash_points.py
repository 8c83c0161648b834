"""The named places where a process can be made to die, by `tests.chaos.harness.crashing`.

Each is one method of a port or one stage, and a moment: before the call, during it, or after it has returned,
when the server has done what was asked and nobody has heard of it.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import os
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.broker import Publication
from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.rabbit.confirms import ConfirmChannel
from pipeline.handlers.runners import Runners
from pipeline.stages import Consume, HandOver, Record
from storage.database import Database
from storage.dead_letters import PostgresDeadLetters
from storage.model import Interrupted
from storage.outbox import PostgresOutbox
from storage.runs import PostgresRuns
from storage.submissions import PostgresSubmissions
from storage.tasks import PostgresTasks
from storage.upkeep import PostgresUpkeep
from storage.workers import PostgresWorkers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

REACHED = "reached"
GO = "go"
POLL_SECONDS = 0.02


class When(enum.Enum):
    """On which side of a call the process dies."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


def _always(_arguments: tuple[Any, ...], _answer: Any) -> bool:
    return True


def _found_some(_arguments: tuple[Any, ...], answer: Any) -> bool:
    return bool(answer)


def _found_none(_arguments: tuple[Any, ...], answer: Any) -> bool:
    return not answer


def _confirmed(_arguments: tuple[Any, ...], answer: list[Publication]) -> bool:
    return Publication.CONFIRMED in answer


def _confirmed_retry(arguments: tuple[Any, ...], answer: list[Publication]) -> bool:
    return _confirmed(arguments, answer) and ".retry." in arguments[1][0].route


def _interrupted(arguments: tuple[Any, ...], _answer: Any) -> bool:
    return any(isinstance(verdict, Interrupted) for verdict in arguments[1])


def _migration(arguments: tuple[Any, ...], _answer: Any) -> bool:
    return "INSERT INTO schema_migrations" in arguments[1]


class Point(NamedTuple):
    """A method, the side of its call, and which call it has to be, judged by arguments and answer."""

    owner: type
    method: str
    when: When
    counts: Callable[[tuple[Any, ...], Any], bool] = _always


POINTS = {
    "gateway.before_submit": Point(PostgresSubmissions, "submit", When.BEFORE),
    "gateway.after_submit": Point(PostgresSubmissions, "submit", When.AFTER),
    "gateway.after_cancel": Point(PostgresTasks, "cancel", When.AFTER),
    "gateway.after_replay": Point(PostgresTasks, "replay", When.AFTER),
    "relay.after_poll": Point(PostgresOutbox, "poll", When.AFTER, _found_some),
    # The frames are on their way, and no confirm can have been read yet.
    "relay.after_send": Point(ConfirmChannel, "_send", When.AFTER),
    "relay.after_confirm": Point(RabbitBroker, "publish", When.AFTER, _confirmed),
    "relay.after_confirm_of_retry": Point(RabbitBroker, "publish", When.AFTER, _confirmed_retry),
    "relay.after_settle": Point(PostgresOutbox, "settle", When.AFTER),
    "relay.before_declare": Point(RabbitBroker, "declare", When.BEFORE),
    "relay.before_returned": Point(PostgresOutbox, "returned", When.BEFORE),
    "relay.after_returned": Point(PostgresOutbox, "returned", When.AFTER),
    "worker.after_first_beat": Point(PostgresWorkers, "beat", When.AFTER),
    "worker.before_claim": Point(PostgresRuns, "claim", When.BEFORE),
    "worker.after_claim": Point(PostgresRuns, "claim", When.AFTER, _found_some),
    "worker.after_refused_claim": Point(PostgresRuns, "claim", When.AFTER, _found_none),
    "worker.after_ack": Point(HandOver, "__call__", When.AFTER),
    "worker.in_handler": Point(Runners, "run", When.DURING),
    "worker.after_run": Point(Record, "__call__", When.BEFORE),
    "worker.after_record": Point(PostgresRuns, "record", When.AFTER),
    "worker.after_hand_back": Point(PostgresRuns, "hand_back", When.AFTER),
    "worker.after_quiesce": Point(Consume, "quiesce", When.AFTER),
    "worker.after_interrupt": Point(PostgresRuns, "record", When.AFTER, _interrupted),
    "worker.before_sign_off": Point(PostgresWorkers, "close", When.BEFORE),
    "dead-letter.after_bury": Point(PostgresDeadLetters, "bury", When.AFTER),
    "dead-letter.after_bury_undecodable": Point(PostgresDeadLetters, "bury_undecodable", When.AFTER),
    "janitor.after_declare_dead": Point(PostgresWorkers, "declare_dead", When.AFTER, _found_some),
    "janitor.after_declare_disconnected_dead": Point(
        PostgresWorkers, "declare_disconnected_dead", When.AFTER, _found_some
    ),
    "janitor.after_rescue": Point(PostgresUpkeep, "rescue", When.AFTER, _found_some),
    "janitor.after_resend": Point(PostgresUpkeep, "resend", When.AFTER, _found_some),
    "janitor.after_prune": Point(PostgresUpkeep, "prune", When.AFTER, _found_some),
    "migrate.after_migration": Point(Database, "script", When.AFTER, _migration),
}


def install(point: Point, folder: Path) -> None:
    """Replace the method by one that dies at the point, the first time in this folder.

    The call is held there, and all else in the process goes on, until the folder has a file GO: who wants to
    look has the time, who does not makes the file first.
    """
    original: Callable[..., Awaitable[Any]] = getattr(point.owner, point.method)

    @functools.wraps(original)
    async def call(*arguments: Any, **named: Any) -> Any:
        if point.when is When.DURING:
            asked = asyncio.ensure_future(original(*arguments, **named))
            await _die(folder)
            return await asked
        if point.when is When.BEFORE:
            await _die(folder)
        answer = await original(*arguments, **named)
        if point.when is When.AFTER and point.counts(arguments, answer):
            await _die(folder)
        return answer

    setattr(point.owner, point.method, call)


async def _die(folder: Path) -> None:
    try:
        (folder / REACHED).touch(exist_ok=False)
    except FileExistsError:
        return  # a supervisor has started the process again, in the same environment
    while not (folder / GO).exists():  # noqa: ASYNC110 - the test is another process
        await asyncio.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
