"""Brings the schema up to date: numbered SQL files, each applied once, in order, by one runner at a time."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import SchemaMismatch

if TYPE_CHECKING:
    from storage.database import Database

LOCK_KEY = 0x6261746F6E  # "baton"
# Another runner is waited for as long as it takes, a table is not: who waits for one holds up all others.
_LOCK = f"""SET LOCAL lock_timeout = 0;
SELECT pg_advisory_xact_lock({LOCK_KEY});
SET LOCAL lock_timeout = 3000;
"""

_CREATE = """CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"""
_EXISTS = "SELECT to_regclass('schema_migrations') IS NOT NULL"
_APPLIED = "SELECT name, checksum FROM schema_migrations ORDER BY name"


class Migration(NamedTuple):
    """One file of `storage/migrations`, with the checksum that is recorded when it is applied."""

    name: str
    sql: str
    checksum: str


def shipped() -> list[Migration]:
    """List the migrations that this code was written for, in order."""
    files = sorted(
        (file for file in resources.files("storage.migrations").iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    texts = [(file.name.removesuffix(".sql"), file.read_text(encoding="utf-8")) for file in files]
    return [Migration(name, sql, hashlib.sha256(sql.encode()).hexdigest()) for name, sql in texts]


async def pending(database: Database, *, beside_newer: bool = False) -> list[Migration]:
    """List what is not yet applied; raises SchemaMismatch where the database knows other ones.

    Newer ones pass where code may go on `beside_newer`.
    """
    [(exists,)] = await database.fetch(_EXISTS)
    rows = await database.fetch(_APPLIED) if exists else []
    applied: dict[str, str] = {row[0]: row[1] for row in rows}
    migrations = shipped()
    unknown = applied.keys() - {migration.name for migration in migrations}
    if unknown and not beside_newer:
        raise SchemaMismatch(
            f"the database has migrations this code does not know: {', '.join(sorted(unknown))}"
        )
    changed = [m.name for m in migrations if applied.get(m.name, m.checksum) != m.checksum]
    if changed:
        raise SchemaMismatch(f"applied from another text than this code ships: {', '.join(changed)}")
    return [migration for migration in migrations if migration.name not in applied]


async def migrate(database: Database) -> list[str]:
    """Apply what is pending and return the names; a second runner waits and then finds nothing to do."""
    await database.script(_LOCK + _CREATE)
    missing = await pending(database)
    for migration in missing:
        # Asked again under the lock: another runner may have applied it since.
        await database.script(
            f"{_LOCK}DO $guard$ BEGIN\n"
            f"IF NOT EXISTS (SELECT FROM schema_migrations WHERE name = '{migration.name}') THEN\n"
            f"EXECUTE $migration$ {migration.sql} $migration$;\n"
            f"INSERT INTO schema_migrations (name, checksum)"
            f" VALUES ('{migration.name}', '{migration.checksum}');\n"
            f"END IF; END $guard$"
        )
    return [migration.name for migration in missing]


async def check(database: Database, *, beside_newer: bool = False) -> None:
    """Return when the schema fits this code; raises SchemaMismatch and says what to do."""
    names = [migration.name for migration in await pending(database, beside_newer=beside_newer)]
    if names:
        raise SchemaMismatch(f"not yet applied: {', '.join(names)}; run `baton migrate`")
