"""`baton migrate`: bring the schema of the database up to date."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.failure import ExitCode, Failure
from pipeline.cli.settings import load_settings

if TYPE_CHECKING:
    from pipeline.settings import Settings


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 unless the schema fits this code.")
    ] = False,
) -> None:
    """Bring the database up to date."""
    from pipeline.cli.screen import Screen  # noqa: PLC0415 - `baton --help` must not wait for it
    from storage.errors import StorageError  # noqa: PLC0415 - as above

    settings = load_settings(embedded=False).settings
    if settings.embedded:
        raise Failure(
            "with EMBEDDED the database is there, and brought up to date, only while `baton run` runs"
        )
    try:
        applied = asyncio.run(_check(settings) if check else _migrate(settings))
    except StorageError as error:
        where = f"{settings.postgres_host}:{settings.postgres_port}/{settings.postgres_db}"
        raise Failure(f"{where}: {error}", ExitCode.FAILED) from error
    for name in applied:
        Screen().say(f"applied {name}")
    Screen().say("The schema fits this code.")


async def _migrate(settings: "Settings") -> list[str]:
    from pipeline.roles import MIGRATION_SECONDS, address_of  # noqa: PLC0415 - `baton --help` must not wait
    from storage.database import Database  # noqa: PLC0415 - as above
    from storage.migrate import migrate as bring_up_to_date  # noqa: PLC0415 - as above

    database = Database(address_of(settings), size=1, timeout_seconds=MIGRATION_SECONDS)
    try:
        return await bring_up_to_date(database)
    finally:
        await database.close()


async def _check(settings: "Settings") -> list[str]:
    from pipeline.roles import address_of  # noqa: PLC0415 - `baton --help` must not wait for it
    from storage.database import Database  # noqa: PLC0415 - as above
    from storage.migrate import check  # noqa: PLC0415 - as above

    database = Database(address_of(settings), size=1)
    try:
        await check(database)
    finally:
        await database.close()
    return []
