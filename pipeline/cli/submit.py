"""`baton submit`: hand a task over, wait, and show its outcome."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from pipeline.cli.failure import ExitCode, Failure, ReplyLost
from pipeline.cli.session import DEFAULT_URL, AsJson, Session, Token, Url, connect
from pipeline.cli.tasks import PriorityName

if TYPE_CHECKING:
    import httpx

OUTCOMES = {
    "COMPLETED": ExitCode.DONE,
    "FAILED": ExitCode.FAILED,
    "CANCELLED": ExitCode.FAILED,
}


def submit(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="Which handler is to run.", show_default=False)],
    payload: Annotated[
        str, typer.Argument(help="JSON, or @FILE with JSON in it, or - for standard input.")
    ] = "{}",
    *,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    priority: Annotated[
        PriorityName | None, typer.Option(help="MEDIUM unless told.", case_sensitive=False)
    ] = None,
    delay_seconds: Annotated[float | None, typer.Option(help="Do not start it earlier.", min=0)] = None,
    timeout_seconds: Annotated[float | None, typer.Option(help="Longest run.", min=0)] = None,
    max_retries: Annotated[int | None, typer.Option(help="Repeats after a failure.", min=0)] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be given several times.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency-Key: the same command with it makes no second task.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the outcome.")] = True,
    wait_seconds: Annotated[float, typer.Option(help="Wait so long at most.", min=0, max=86_400)] = 20,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Hand a task over and show its outcome.

    Exit codes: 0 COMPLETED (or accepted, with --no-wait), 1 FAILED or CANCELLED, 2 refused, 3 not ended
    when the time was up, 4 no good answer.
    """
    given = {
        "name": name,
        "priority": priority,
        "delay_seconds": delay_seconds,
        "timeout_seconds": timeout_seconds,
        "max_retries": max_retries,
        "tags": tag,
    }
    body = {"kind": kind, "payload": read_payload(payload)} | {
        field: value for field, value in given.items() if value not in (None, [])
    }
    with connect(context, url, token, as_json=as_json) as session:
        answer = _hand_over(session, body, key or str(uuid4()))
        if not wait:
            _show_accepted(session, answer)
            return
        session.screen.remark(f"accepted {answer.json()['id']}")
        outcome = session.api.wait(answer.json()["id"], wait_seconds)
        _show_outcome(session, outcome)
    raise typer.Exit(OUTCOMES.get(outcome.json()["status"], ExitCode.RUNNING))


def read_payload(payload: str) -> Any:
    """Take a payload, JSON or @FILE or -, as the bytes it is: no number or text of it changes on the way."""
    import msgspec  # noqa: PLC0415 - `baton --help` must not wait for it

    try:
        if payload == "-":
            raw = sys.stdin.buffer.read()
        else:
            raw = Path(payload[1:]).read_bytes() if payload.startswith("@") else payload.encode()
        msgspec.json.decode(raw)
        raw.decode()
    except OSError as error:
        raise Failure(f"payload {payload}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Failure(f"the payload is not JSON: {error}; allowed: JSON, @FILE or -") from error
    return msgspec.Raw(raw)


def _hand_over(session: Session, body: dict[str, object], key: str) -> "httpx.Response":
    try:
        return session.api.post("/tasks", body, key)
    except ReplyLost as lost:
        raise ReplyLost(
            f"{lost}\nRepeat the same command with --key {key}: that makes no second task."
        ) from lost


def _show_accepted(session: Session, answer: "httpx.Response") -> None:
    if session.as_json:
        session.screen.script(answer.text)
    else:
        session.screen.say(f"{answer.json()['status']} {answer.json()['id']}")


def _show_outcome(session: Session, answer: "httpx.Response") -> None:
    """Show status and result, or the last error; everything else is in `baton tasks show`."""
    if session.as_json:
        session.screen.script(answer.text)
        return
    task = answer.json()
    session.screen.say(f"{task['status']} {task['id']}")
    if task["status"] == "COMPLETED":
        session.screen.json(task.get("result"))
    elif task["errors"]:
        last = task["errors"][-1]
        session.screen.say(f"attempt {last['attempt']}: {last['type']}: {last['message']}")
