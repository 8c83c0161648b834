"""What the gateway needs of the settings, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pipeline.settings import Settings


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who may call, how long it may take, how much may wait, what a task gets that names no policy itself."""

    api_tokens: tuple[str, ...] = ()
    allow_anonymous: bool = False
    request_timeout_seconds: float = 10.0
    max_retries: int = 3
    task_timeout_seconds: float = 300.0
    max_waiting_tasks: int = 1_000_000

    @classmethod
    def from_settings(cls, settings: Settings) -> GatewaySettings:
        """Take the gateway's part of all settings."""
        return cls(
            api_tokens=settings.api_tokens,
            allow_anonymous=settings.allow_anonymous,
            request_timeout_seconds=settings.request_timeout_seconds,
            max_retries=settings.max_retries,
            task_timeout_seconds=settings.task_timeout_seconds,
            max_waiting_tasks=settings.max_waiting_tasks,
        )

    def __repr__(self) -> str:
        return f"GatewaySettings({len(self.api_tokens)} tokens, allow_anonymous={self.allow_anonymous})"
