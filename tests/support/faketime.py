"""A wall clock that is wrong, for one process: Debian's libfaketime."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from tests.support.debian import require

LIBRARY = Path("/usr/lib") / str(sysconfig.get_config_var("MULTIARCH")) / "faketime/libfaketime.so.1"


def wall_clock_off_by(seconds: float) -> dict[str, str]:
    """Return the environment to add for a process whose wall clock is this far ahead (negative: behind)."""
    require("libfaketime", LIBRARY)
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME": f"{seconds:+.3f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that is set wrong leaves durations alone
    }
