"""Programs that tests need and that come from Debian."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = Path("/usr/sbin/policy-rc.d")


def require(package: str, there: Path) -> None:
    """Install a package where its file is not there and root may; else fail with one line of remedy."""
    # Tests run in several processes: all of them wait for the one that installs, and for its last file.
    with (Path(tempfile.gettempdir()) / f"baton-tests-{os.geteuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not there.exists():
            _install(package)


def _install(package: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.fail(
            f"{package} is not installed: as root run `apt-get install {package}`, once", pytrace=False
        )
    print(f"installing {package} for the tests; no service is started", file=sys.__stderr__, flush=True)
    with _nothing_enabled():
        for arguments in (("update",), ("install", "--yes", "--no-install-recommends", package)):
            apt_get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *arguments]
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(apt_get, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                said = " ".join((done.stdout + done.stderr).split("\n")[-3:])
                pytest.fail(f"{package} is missing, `{' '.join(apt_get)}` failed: {said}", pytrace=False)


@contextmanager
def _nothing_enabled() -> Iterator[None]:
    """Let packages be installed without any of their services being started now or at the next boot."""
    before = _enabled_services()
    ours = not POLICY.exists()
    if ours:
        # Forbids starts only while we live, so that a kill -9 leaves no lasting ban.
        POLICY.write_text(f"#!/bin/sh\nkill -0 {os.getpid()} 2>/dev/null && exit 101\nexit 0\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink()
        for link in _enabled_services() - before:
            link.unlink(missing_ok=True)


def _enabled_services() -> set[Path]:
    return {*Path("/etc/systemd/system").glob("*.wants/*"), *Path("/etc").glob("rc[2-5S].d/S*")}
