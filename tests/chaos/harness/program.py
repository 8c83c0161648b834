"""`baton` as the harness starts it: the same program, its ports with a pen, and perhaps one mutant in it.

Arguments are those of `baton`. CHAOS_FOLDER is where the history goes, CHAOS_BY the name of this process and
its incarnation, CHAOS_MUTANT a name of `mutants`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import baton_tasks
from pipeline import roles
from tests.chaos.harness import mutants
from tests.chaos.harness.events import Booted
from tests.chaos.harness.history import Log, now
from tests.chaos.harness.recording import Recorder


def main() -> None:
    """Replace the ports that the wiring uses, then run."""
    by = os.environ["CHAOS_BY"]
    log = Log(Path(os.environ["CHAOS_FOLDER"]) / f"{by}.events", by)
    ahead = time.time() - float(os.environ["CHAOS_WALL_MINUS_MONOTONIC"]) - now()
    log.write(Booted(at=now(), by=by, pid=os.getpid(), wall_ahead_seconds=ahead))
    recorder = Recorder(log)
    wiring: Any = roles
    wiring.PostgresLedger = recorder.ledger
    wiring.RabbitBroker = recorder.broker
    if mutant := os.environ.get("CHAOS_MUTANT"):
        mutants.install(mutant)
    baton_tasks.main()


if __name__ == "__main__":
    main()
