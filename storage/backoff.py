"""How long to wait before asking again somebody who is away."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def backoff_seconds(first: float, longest: float) -> Iterator[float]:
    """Yield waits without end, each twice the last up to `longest`, jittered so that processes spread out."""
    delay_seconds = first
    while True:
        yield delay_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        delay_seconds = min(delay_seconds * 2, longest)
