"""The command line: `baton run` and its kin for whoever keeps the service, the others for its clients."""

from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.cli import bench, dead_letters, outbox, tasks
from pipeline.cli.failure import Failure
from pipeline.cli.health import health
from pipeline.cli.migrate import migrate
from pipeline.cli.run import run
from pipeline.cli.settings import settings
from pipeline.cli.submit import submit

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Ends a command that fails with one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Failure as failure:
            from pipeline.cli.screen import Screen  # noqa: PLC0415 - `baton --help` must not wait for it

            Screen().remark(f"Error: {failure}")
            raise typer.Exit(failure.exit_code) from failure


app = typer.Typer(
    cls=_Commands,
    help="Baton, a durable asynchronous task service.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (run, migrate, settings, health, submit):
    app.command()(command)
app.add_typer(tasks.app, name="tasks")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(outbox.app, name="outbox")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="baton")
