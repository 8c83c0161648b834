"""Where reports are kept, and what each of them begins with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[3]
REPORTS = ROOT / "tests" / "chaos" / "reports"


def keep(name: str, report: object) -> Path:
    """Write a report to tests/chaos/reports; where it is."""
    REPORTS.mkdir(exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    file = REPORTS / f"{name}.json"
    file.write_bytes(text + b"\n")
    return file


def commit() -> str:
    """Name the commit of the checkout; with a plus where it has changes."""
    try:
        command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12")
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no repository"
