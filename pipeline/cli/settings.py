"""`baton settings`, and how every command of a server reads them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.failure import Failure
from pipeline.cli.session import AsJson

if TYPE_CHECKING:
    from pipeline.settings import Loaded

Embedded = Annotated[
    bool,
    typer.Option("--embedded", help="Run an own PostgreSQL and an in-memory broker, and ignore .env."),
]

COLUMNS = {"name": "name", "value": "value", "source": "source", "meaning": "meaning"}


def settings(embedded: Embedded = False, as_json: AsJson = False) -> None:
    """Show the settings and their sources.

    Secrets are masked.
    """
    import msgspec  # noqa: PLC0415 - `baton --help` must not wait for it

    from pipeline.cli.screen import Screen  # noqa: PLC0415 - as above
    from pipeline.settings import describe  # noqa: PLC0415 - as above

    rows = describe(load_settings(embedded=embedded))
    if as_json:
        Screen().script(msgspec.json.encode({"items": rows}).decode())
    else:
        Screen().table([msgspec.to_builtins(row) for row in rows], COLUMNS)


def load_settings(*, embedded: bool) -> "Loaded":
    """Read the settings of the working directory; raises Failure with every problem.

    Whoever asks for the embedded default, by the option, the environment or settings.toml, does not mean
    the servers of a .env that was made for compose: it is left out, and this is said.
    """
    from pipeline.settings import SettingsError, load  # noqa: PLC0415 - `baton --help` must not wait for it

    environ = {**os.environ, "EMBEDDED": "true"} if embedded else os.environ
    try:
        loaded = load(environ=environ, use_dotenv=False)
    except SettingsError as error:
        if embedded:
            raise _unusable(error) from error
    else:
        if loaded.settings.embedded:
            _tell_ignored(Path.cwd() / ".env")
            return loaded
    try:
        return load(environ=environ)
    except SettingsError as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> Failure:
    return Failure(
        "these settings cannot be used:\n" + "\n".join(f"  {line}" for line in str(error).splitlines())
    )


def _tell_ignored(dotenv: Path) -> None:
    from pipeline.cli.screen import Screen  # noqa: PLC0415 - `baton --help` must not wait for it

    if dotenv.is_file():
        Screen().remark(f"{dotenv} is ignored: the embedded default brings its own PostgreSQL and broker.")
