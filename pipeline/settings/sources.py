"""Reading settings with dynaconf: settings.toml and .env of one folder, then the environment, all as written.

Left to itself dynaconf casts text (`0123`, `1e5`, `@int x`), searches other folders for `.env`, reports its
values as environment, runs a `dynaconf_hooks.py` beside settings.toml, and aborts on a foreign variable such
as `X="@int abc"`. So it starts no loader by itself, its casts are off, and each source is its own layer.
"""

from __future__ import annotations

import io
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
from dynaconf.base import LazySettings  # type: ignore[import-untyped]  # dynaconf ships no types
from dynaconf.loaders import toml_loader  # type: ignore[import-untyped]  # as above
from dynaconf.loaders.base import SourceMetadata  # type: ignore[import-untyped]  # as above
from dynaconf.vendor.dotenv.parser import parse_stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path


class Source(StrEnum):
    """Where a value comes from, weakest first."""

    DEFAULT = "default"
    TOML = "settings.toml"
    DOTENV = ".env"
    ENVIRONMENT = "environment"


class Written(msgspec.Struct, frozen=True):
    """A value as its source holds it: text, or from settings.toml any TOML type."""

    raw: object
    source: Source


class Reading(msgspec.Struct, frozen=True):
    """What all sources hold: the winning values, names nobody knows, and what could not be read at all."""

    values: dict[str, Written]
    unknown: tuple[tuple[str, Source], ...]
    problems: tuple[str, ...]


def read(
    directory: Path, environ: Mapping[str, str], known: AbstractSet[str], *, use_dotenv: bool
) -> Reading:
    """Read every source; foreign names are told from the two files, not from the environment.

    Names are upper-case; in settings.toml dynaconf takes any case.
    """
    unknown: list[tuple[str, Source]] = []

    def keep_known(table: dict[str, object]) -> dict[str, object]:
        unknown.extend((name, Source.TOML) for name in table if name not in known)
        return {name: value for name, value in table.items() if name in known}

    # Skipped loaders also keep a variable AUTO_CAST_FOR_DYNACONF from switching the casts on again.
    store = LazySettings(
        dynaconf_skip_loaders=True, auto_cast=False, load_dotenv=False, filter_strategy=keep_known
    )
    problems: list[str] = []
    _load_toml(store, directory / Source.TOML, problems)
    dotenv = _parse_dotenv(directory / Source.DOTENV, problems) if use_dotenv else {}
    unknown += [(name, Source.DOTENV) for name in dotenv if name not in known]
    for source, written in ((Source.DOTENV, dotenv), (Source.ENVIRONMENT, environ)):
        layer = {name: written[name] for name in known if name in written}
        store.update(layer, loader_identifier=SourceMetadata(source, source), validate=False)
    # dynaconf keeps the layers in the order they came in, so the last to hold a name is its source.
    holders = {name: layer.loader for layer, names in store.loaded_by_loaders.items() for name in names}
    values = {name: Written(store.get(name), Source(holders[name])) for name in known if name in holders}
    return Reading(values, tuple(unknown), tuple(problems))


def _load_toml(store: LazySettings, path: Path, problems: list[str]) -> None:
    """Add the file as a layer to the store."""
    try:
        if path.is_file():
            path.read_bytes()  # about a file that it cannot read dynaconf only warns
            # In a list, for dynaconf cuts a bare path such as x.toml,y/settings.toml at the comma.
            toml_loader.load(store, env="_envless", filename=[str(path)], identifier=Source.TOML)
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}; allowed: a TOML file in UTF-8")


def _parse_dotenv(path: Path, problems: list[str]) -> dict[str, str]:
    """Read the values; problems name a statement by its line alone, for it may hold a secret."""
    try:
        # A folder called .env is somebody's virtual environment.
        text = path.read_text("utf-8-sig") if path.is_file() else ""
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}; allowed: a text file in UTF-8")
        return {}
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):  # type: ignore[no-untyped-call]  # dynaconf ships no types
        if binding.error or (binding.key is not None and binding.value is None):
            # The parser counts from the blank lines before a statement.
            statement: str = binding.original.string
            blank = statement[: len(statement) - len(statement.lstrip())].count("\n")
            problems.append(
                f"{path} line {binding.original.line + blank}: allowed: NAME=value or NAME='value'"
            )
        elif binding.key is not None:
            values[binding.key] = binding.value
    return values
