"""The entry of the command `baton`, which first checks that `gateway`, `pipeline` and `storage` are ours.

These are common names, and a stranger's `pipeline` may hold no command line. So the check stands in a module
of a name that nobody else has, and needs the standard library alone.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import ModuleSpec
    from importlib.metadata import Distribution

NAME = "baton-tasks"
PACKAGES = ("gateway", "pipeline", "storage")


class ForeignPackage(Exception):
    """A package of ours is missing or comes from elsewhere: one line for each, with its path."""


def main() -> None:
    """Run the command line of this process, or say what stands in its place and exit with 1."""
    try:
        check()
    except ForeignPackage as error:
        raise SystemExit(f"Error: {error}") from error
    from pipeline.cli import main as command  # noqa: PLC0415 - only now is it known to be ours

    command()


def check(
    ours: Distribution | None = None,
    find: Callable[[str], ModuleSpec | None] = importlib.util.find_spec,
) -> None:
    """Return when the three packages are those of this distribution, installed or editable.

    Raises ForeignPackage naming what stands in their place: a folder earlier on the path, or another
    distribution that has overwritten files of ours.
    """
    if ours is None:
        ours = _installed()
    root = _root(ours)
    problems = [problem for name in PACKAGES for problem in _misplaced(name, root, find)]
    if problems := problems or list(_overwritten(ours)):
        raise ForeignPackage("\n".join(problems))


def _installed() -> Distribution:
    try:
        return importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        message = f"the distribution {NAME} is not installed in this environment; `uv sync` installs it"
        raise ForeignPackage(message) from None


def _root(ours: Distribution) -> Path:
    """Find the folder that holds our packages; an editable install notes where the checkout is (PEP 610)."""
    origin = json.loads(ours.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(unquote(urlsplit(origin["url"]).path)).resolve()
    return Path(str(ours.locate_file(""))).resolve()


def _misplaced(name: str, root: Path, find: Callable[[str], ModuleSpec | None]) -> Iterator[str]:
    spec = find(name)
    places = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
    if places == [root / name]:
        return
    found = ", ".join(map(str, places)) or (spec and spec.origin) or "nothing"
    yield (
        f"the package {name} of {NAME} belongs in {root / name}, but Python finds {found}; "
        "remove that, or take its folder out of PYTHONPATH"
    )


def _overwritten(ours: Distribution) -> Iterator[str]:
    """Compare our files with the checksums noted at their installation; an editable install has none.

    A changed file that no other distribution brings was changed by its owner, who may do so.
    """
    for file in ours.files or ():
        if file.parts[0] not in PACKAGES or file.hash is None:
            continue
        path = Path(str(file.locate()))
        if not path.is_file():
            yield f"{path} is missing; install {NAME} again"
        elif _digest(path, file.hash.mode) != file.hash.value and (others := _owners(str(file), ours)):
            yield f"{path} was overwritten by {others}; install {NAME} in an environment of its own"


def _digest(path: Path, algorithm: str) -> str:
    """Hash a file as the wheel format writes it: base64 for URLs, without padding."""
    digest = hashlib.new(algorithm, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _owners(file: str, ours: Distribution) -> str:
    """Name the distributions beside ours that bring the same file; slow, and asked only in trouble."""
    return " and ".join(
        f"{other.metadata['Name']} {other.version}"
        for other in importlib.metadata.distributions(path=[str(ours.locate_file(""))])
        if other.metadata["Name"] != NAME and any(str(entry) == file for entry in other.files or ())
    )


if __name__ == "__main__":
    main()
