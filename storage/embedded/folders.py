"""The folders of the embedded PostgreSQL: held by one process, reached by a short path, on the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from storage.embedded.errors import DataFolderLocked

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, with our name in it; raises DataFolderLocked with the name of who has it."""
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise DataFolderLocked(f"data folder {folder} is in use by {holder}") from None
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} since {since}: {' '.join(sys.orig_argv)[:200]}\n")
        file.flush()
        yield


@contextmanager
def socket_folder(link: Path) -> Iterator[str]:
    """Make a private folder with a short path (a socket's is limited to some 100 bytes), and a link to it.

    The link is for people (`psql -h .baton/socket`) and for the start after a kill -9, which removes both.
    """
    with suppress(OSError):
        old = link.readlink()
        link.unlink()
        if old.parent == Path("/tmp") and old.name.startswith("baton-"):  # noqa: S108 - compared, not opened
            shutil.rmtree(old, ignore_errors=True)
    # Not where TMPDIR says: that may be long.
    folder = Path(tempfile.mkdtemp(prefix="baton-", dir="/tmp"))
    link.symlink_to(folder)
    try:
        yield str(folder)
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def linked_folder(link: Path) -> str | None:
    """Find the folder of the socket from another process; None while no server runs."""
    with suppress(OSError):
        folder = link.resolve(strict=True)
        return str(folder) if folder.is_dir() else None
    return None


def sync_folder(folder: Path) -> None:
    """Let what was renamed in a folder outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
