"""What the client commands share: their options, and a connection with a screen to show its answers on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pipeline.cli.outside import Outside

if TYPE_CHECKING:
    import httpx

    from pipeline.cli.client import Client
    from pipeline.cli.screen import Screen

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar="BATON_URL", help="Where the API is.")]
Token = Annotated[
    str, typer.Option("--token", envvar="BATON_TOKEN", help="One of its API_TOKENS.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the API's answer, and nothing else.")]
Limit = Annotated[int | None, typer.Option(help="Items a page holds, 50 unless told.", min=1, max=200)]
Cursor = Annotated[str | None, typer.Option(help="Continue a list: `next` of the page before.")]
Every = Annotated[bool, typer.Option("--all", help="Show all pages from there on; as JSON, one a line.")]


class Session(NamedTuple):
    """An API, and a screen for its answers."""

    api: "Client"
    screen: "Screen"
    as_json: bool

    def show(self, answer: "httpx.Response") -> None:
        """Show one thing with all its fields."""
        if self.as_json:
            self.screen.script(answer.text)
        else:
            self.screen.card(answer.json())

    def show_list(self, pages: "Iterator[httpx.Response]", columns: Mapping[str, str]) -> None:
        """Show pages as they come, however many there are."""
        cursor, shown = None, 0
        for page in pages:
            if self.as_json:
                self.screen.script(page.text)
                continue
            items, cursor = page.json()["items"], page.json()["next"]
            if items:
                self.screen.table(items, columns, titled=shown == 0)
                shown += len(items)
        if cursor is not None:
            self.screen.remark(f"The list goes on: --cursor {cursor}, or --all")
        elif not self.as_json and not shown:
            self.screen.remark("Nothing is there.")


@contextmanager
def connect(context: typer.Context, url: str, token: str, *, as_json: bool) -> Iterator[Session]:
    """Open a session for one command."""
    # `baton --help` must not wait for these two.
    from pipeline.cli.client import Client  # noqa: PLC0415 - as said above
    from pipeline.cli.screen import Screen  # noqa: PLC0415 - as said above

    with Client(url, token, Outside.of(context).transport) as api:
        yield Session(api, Screen(), as_json)
