"""All histories that break an invariant by hand, by the themes of the invariants."""

from __future__ import annotations

from tests.support.breaks import accepting, claiming, ending, moving, recording, relaying, resting, working
from tests.support.breaks.examples import BREAKS

__all__ = [
    "BREAKS",
    "accepting",
    "claiming",
    "ending",
    "moving",
    "recording",
    "relaying",
    "resting",
    "working",
]
