"""`baton tasks`: what became of them, and what an operator does about it."""

from typing import Annotated, Literal
from uuid import UUID

import typer

from pipeline.cli.session import DEFAULT_URL, AsJson, Cursor, Every, Limit, Token, Url, connect

PriorityName = Literal["HIGH", "MEDIUM", "LOW"]
StatusName = Literal["NEW", "PENDING", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"]

COLUMNS = {
    "id": "id",
    "kind": "kind",
    "status": "status",
    "priority": "priority",
    "attempt": "attempt",
    "created_at": "created (UTC)",
    "name": "name",
}

app = typer.Typer(no_args_is_help=True, help="List, show, cancel and replay tasks.")

TaskId = Annotated[UUID, typer.Argument(help="Id of the task.", show_default=False)]


@app.command("list")
def find(
    context: typer.Context,
    *,
    status: Annotated[
        StatusName | None, typer.Option(help="Only in this status.", case_sensitive=False)
    ] = None,
    priority: Annotated[
        PriorityName | None, typer.Option(help="Only of this priority.", case_sensitive=False)
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    created_from: Annotated[
        str | None, typer.Option(help="Only created at or after, such as 2030-01-31T12:00:00Z.")
    ] = None,
    created_to: Annotated[str | None, typer.Option(help="Only created before.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    every: Every = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    which = {
        "status": status,
        "priority": priority,
        "kind": kind,
        "tag": tag,
        "created_from": created_from,
        "created_to": created_to,
        "limit": limit,
    }
    with connect(context, url, token, as_json=as_json) as session:
        session.show_list(session.api.pages("/tasks", which, cursor, every=every), COLUMNS)


@app.command()
def show(
    context: typer.Context,
    task_id: TaskId,
    *,
    wait_seconds: Annotated[
        float, typer.Option(help="Wait so long for the task to end.", min=0, max=86_400)
    ] = 0,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Show a task: where it is, what it was given, what came out, what went wrong."""
    with connect(context, url, token, as_json=as_json) as session:
        session.show(session.api.wait(task_id, wait_seconds))


@app.command()
def cancel(
    context: typer.Context,
    task_id: TaskId,
    *,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Cancel a task that waits; ask one that runs to stop."""
    with connect(context, url, token, as_json=as_json) as session:
        answer = session.api.delete(f"/tasks/{task_id}")
        if answer.json()["status"] != "CANCELLED":
            session.screen.remark("It runs, and was asked to stop.")
        session.show(answer)


@app.command()
def replay(
    context: typer.Context,
    task_id: TaskId,
    *,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the audit.", show_default=False)],
    dispatch: Annotated[
        int | None,
        typer.Option(help="Only if this is its dispatch: a repeat then replays nothing twice.", min=1),
    ] = None,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Hand a FAILED or CANCELLED task out again."""
    body = {"reason": reason} | ({} if dispatch is None else {"dispatch": dispatch})
    with connect(context, url, token, as_json=as_json) as session:
        session.show(session.api.post(f"/tasks/{task_id}/replay", body))
