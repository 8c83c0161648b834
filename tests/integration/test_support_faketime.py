"""The wrong clock of the tests is wrong where it should be, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.support.faketime import wall_clock_off_by

ASK = """
import asyncio, time
before = time.monotonic()
asyncio.run(asyncio.sleep(0.2))
print(time.time(), time.monotonic(), time.monotonic() - before)
"""


@pytest.mark.parametrize("off", [3600.0, -3600.0])
def test_only_the_wall_clock_is_off(off: float) -> None:
    environment = os.environ | wall_clock_off_by(off)
    asked = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    wall, monotonic, slept = map(float, asked.stdout.split())
    assert wall - time.time() == pytest.approx(off, abs=60)
    assert monotonic == pytest.approx(time.monotonic(), abs=60)
    assert 0.2 <= slept < 60
