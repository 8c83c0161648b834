"""Whose cancellation it is: ours, or a driver's."""

from __future__ import annotations

import asyncio


def cancelled() -> bool:
    """Tell a cancellation of this task from the CancelledError that drivers throw at whom they let down."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
