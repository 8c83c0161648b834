"""Wheels, and environments that hold nothing but wheels and what these declare to need; without network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Collection


def build(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build sdist and wheel of the project in `source`."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


class Environment:
    """A virtual environment: a wheel, and links to the dependencies that the tests themselves run with.

    An undeclared dependency is missing here, and so is the checkout.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.folder = folder
        self.paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
        self.packages = Path(self.paths["purelib"])
        self.python = folder / "bin" / "python"
        self.baton = folder / "bin" / "baton"
        self.variables = {"PATH": os.defpath, "HOME": str(folder)}

    def install(self, wheel: Path) -> None:
        """Do what pip does, which overwrites what another wheel brought."""
        destination = SchemeDictionaryDestination(
            {**self.paths, "headers": self.paths["include"]},
            interpreter=str(self.python),
            script_kind="posix",
            overwrite_existing=True,
        )
        with WheelFile.open(wheel) as source:
            install(source, destination, additional_metadata={"INSTALLER": b"tests"})
            (ours,) = metadata.distributions(name=source.distribution, path=[str(self.packages)])
        self._link_requirements(ours, extras=())

    def run(self, *command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command that ends by itself, in a folder."""
        return subprocess.run(
            command,
            cwd=folder,
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _link_requirements(self, distribution: metadata.Distribution, extras: Collection[str]) -> None:
        for line in distribution.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                continue
            needed = metadata.distribution(requirement.name)
            if self._link(needed) or requirement.extras:
                self._link_requirements(needed, requirement.extras)

    def _link(self, distribution: metadata.Distribution) -> bool:
        """Link the folders and modules of a distribution; whether one was not there yet."""
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        missing = [top for top in tops if not (self.packages / top).exists()]
        for top in missing:
            (self.packages / top).symlink_to(str(distribution.locate_file(top)))
        return bool(missing)
