"""The settings of Baton, read once at start into one frozen struct; every problem is told at once."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.settings.fields import FIELDS, RULES, LogFormat, LogLevel, Role, Settings
from pipeline.settings.sources import Source, Written, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Loaded",
    "LogFormat",
    "LogLevel",
    "Role",
    "Row",
    "Settings",
    "SettingsError",
    "Source",
    "describe",
    "load",
]


class SettingsError(Exception):
    """Settings that cannot be used: one line per problem, with name, value, source and what is allowed."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Loaded(msgspec.Struct, frozen=True):
    """Settings, and by upper-case name where each one comes from."""

    settings: Settings
    origins: dict[str, Source]


class Row(msgspec.Struct, frozen=True):
    """One setting as it is shown to people, secrets masked."""

    name: str
    value: str
    source: Source
    meaning: str


def load(
    directory: Path | None = None, environ: Mapping[str, str] = os.environ, *, use_dotenv: bool = True
) -> Loaded:
    """Read settings.toml and .env of the directory (default: the working one) and the environment.

    The environment wins over .env, .env over settings.toml, settings.toml over the defaults; each may be
    absent. Raises SettingsError naming every problem.
    """
    reading = read(directory or Path.cwd(), environ, FIELDS.keys(), use_dotenv=use_dotenv)
    values, refused = _convert(reading.values)
    origins = {
        name: reading.values[name].source if name in reading.values else Source.DEFAULT for name in FIELDS
    }
    loaded = Loaded(Settings(**values), origins)
    problems = (
        *reading.problems,
        *(_unknown(name, source) for name, source in reading.unknown),
        *refused.values(),
        *_broken_rules(loaded, refused),
    )
    if problems:
        raise SettingsError(problems)
    return loaded


def describe(loaded: Loaded) -> list[Row]:
    """List all settings in the order of `Settings`."""
    return [Row(name, _shown(loaded, name), loaded.origins[name], FIELDS[name].meaning) for name in FIELDS]


def _shown(loaded: Loaded, name: str) -> str:
    field = FIELDS[name]
    return field.form.show(getattr(loaded.settings, field.attribute))


def _convert(written: Mapping[str, Written]) -> tuple[dict[str, Any], dict[str, str]]:
    """Split what was written into values by attribute and problems by name."""
    values: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, field in FIELDS.items():
        if name in written:
            raw, source = written[name].raw, written[name].source
            try:
                values[field.attribute] = field.form.read(raw)
            except ValueError:
                refused[name] = f"{name}={field.form.quote(raw)} ({source}): allowed: {field.form.allowed}"
    return values, refused


def _unknown(name: str, source: Source) -> str:
    """Report a name without its value: a misspelt password is still one."""
    (nearest,) = difflib.get_close_matches(name.upper(), FIELDS, n=1, cutoff=0)
    return f"{name!r} ({source}): no such setting; allowed: the known names, the nearest is {nearest}"


def _broken_rules(loaded: Loaded, refused: Mapping[str, str]) -> Iterator[str]:
    """Check the rules between settings, but none on a default that stands in for a refused value."""
    for rule in RULES:
        if refused.keys().isdisjoint(rule.reads) and (fault := rule.fault(loaded.settings)):
            name = rule.reads[0]
            yield f"{name}={_shown(loaded, name)!r} ({loaded.origins[name]}): {fault}"
