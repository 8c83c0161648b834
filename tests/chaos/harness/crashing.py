"""`python -m tests.chaos.harness.crashing run`: the command `baton`, in a process that dies at a point.

CRASH_AT names the point (`tests.chaos.harness.crash_points`), CRASH_FOLDER the folder that notes the crash.
"""

from __future__ import annotations

import os
from pathlib import Path

import baton_tasks
from tests.chaos.harness.crash_points import POINTS, install

if __name__ == "__main__":
    install(POINTS[os.environ["CRASH_AT"]], Path(os.environ["CRASH_FOLDER"]))
    baton_tasks.main()
