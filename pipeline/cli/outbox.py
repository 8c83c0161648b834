"""`baton outbox`: hand-overs on their way to the broker."""

from typing import Annotated, Literal

import typer

from pipeline.cli.session import DEFAULT_URL, AsJson, Cursor, Every, Limit, Token, Url, connect

OutboxStatusName = Literal["WAITING", "FAILED"]

COLUMNS = {
    "id": "id",
    "task_id": "task",
    "dispatch": "dispatch",
    "route": "route",
    "status": "status",
    "attempts": "attempts",
    "available_at": "available (UTC)",
    "error": "error",
}

app = typer.Typer(no_args_is_help=True, help="List, and retry, what waits for the broker.")


@app.command("list")
def find(
    context: typer.Context,
    *,
    status: Annotated[
        OutboxStatusName | None, typer.Option(help="Only in this status.", case_sensitive=False)
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    every: Every = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """List outbox rows, newest first."""
    which = {"status": status, "limit": limit}
    with connect(context, url, token, as_json=as_json) as session:
        session.show_list(session.api.pages("/outbox", which, cursor, every=every), COLUMNS)


@app.command()
def retry(
    context: typer.Context,
    row_id: Annotated[int, typer.Argument(help="Id of the row.", min=1, show_default=False)],
    *,
    url: Url = DEFAULT_URL,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Send a FAILED row again, and replay its undeliverable task."""
    with connect(context, url, token, as_json=as_json) as session:
        session.show(session.api.post(f"/outbox/{row_id}/retry"))
