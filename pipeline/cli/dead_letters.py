"""`baton dead-letters`: evidence of what ended badly."""

from typing import Annotated
from uuid import UUID

import typer

from pipeline.cli.session import DEFAULT_URL, AsJson, Cursor, Every, Limit, Token, Url, connect

COLUMNS = {
    "id": "id",
    "task_id": "task",
    "kind": "kind",
    "reason": "reason",
    "attempt": "attempt",
    "created_at": "created (UTC)",
}

app = typer.Typer(no_args_is_help=True, help="List and show dead letters.")


@app.command("list")
def find(
    context: typer.Context,
    *,
    task_id: Annotated[UUID | None, typer.Option("--task", help="Only of this task.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    every: Every = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    which = {"task_id": task_id, "kind": kind, "limit": limit}
    with connect(context, url, token, as_json=as_json) as session:
        session.show_list(session.api.pages("/dead-letters", which, cursor, every=every), COLUMNS)


@app.command()
def show(
    context: typer.Context,
    dead_letter_id: Annotated[int, typer.Argument(help="Id of the dead letter.", min=1, show_default=False)],
    *,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Show a dead letter, with the bytes (base64) of a message that nobody could read."""
    with connect(context, url, token, as_json=as_json) as session:
        session.show(session.api.get(f"/dead-letters/{dead_letter_id}"))
