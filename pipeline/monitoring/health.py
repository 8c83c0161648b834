"""Whether a process gets on with its work: not that it runs, but when it last got something done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from pipeline.broker.topology import DLQ
from pipeline.settings import Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from pipeline.broker import Subscription
    from pipeline.clock import Clock
    from pipeline.settings import Settings

STALL_SECONDS = 15.0
"""What is late by more than this stands still: a confirm or a statement may take ten seconds."""

DATABASE_SECONDS = 2.0
"""How long the database may take to answer a probe, which gives up early itself."""


class Recurring:
    """Something that must happen again and again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: float | None = None

    def happened(self, at: float | None = None) -> None:
        """Note that it happened, now or at a moment of the clock."""
        self._at = self._clock.now() if at is None else at

    def age_seconds(self) -> float | None:
        """Tell how long ago it last happened; None if it never did."""
        return None if self._at is None else self._clock.now() - self._at


class Awaited:
    """An answer that must come once somebody asks; only the first of several askings counts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None

    def asked(self) -> None:
        """Note that an answer is waited for."""
        if self._since is None:
            self._since = self._clock.now()

    def answered(self) -> None:
        """Note that one came, or that nobody waits any more."""
        self._since = None

    def age_seconds(self) -> float:
        """Tell how long an answer has been waited for; 0 if it is not."""
        return 0.0 if self._since is None else self._clock.now() - self._since


class Progress:
    """What the measured ports have seen of a process."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.polled = Recurring(clock)
        self.confirmed = Awaited(clock)
        self.heard = Recurring(clock)
        self.claimed = Awaited(clock)
        self.recorded = Awaited(clock)
        self.rescued = Recurring(clock)
        self.consumers: dict[str, Subscription] = {}
        self.ask_database: Callable[[], Awaitable[None]] | None = None

    def detached_seconds(self, queue: str) -> float | None:
        """Tell how long a queue has not been consumed; None if it never was."""
        return self.consumers[queue].detached_seconds if queue in self.consumers else None


class Check(NamedTuple):
    """What a role must do, and how long it may take."""

    role: Role
    name: str
    age_seconds: Callable[[], float | None]
    limit_seconds: float


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A check as it was found; without an age what it asks for has never happened."""

    role: Role
    check: str
    ok: bool
    age_seconds: float | None
    limit_seconds: float
    error: str = ""


class Health(msgspec.Struct, frozen=True):
    """All findings of a process."""

    ready: bool
    checks: list[Finding]


def checks(settings: Settings, progress: Progress) -> Iterator[Check]:
    """List what the roles of the settings must do, but for the gateway's, whose answer is the database's."""
    lease_seconds = settings.worker_lease_seconds
    if Role.RELAY in settings.role:
        poll_seconds = settings.outbox_poll_interval + STALL_SECONDS
        yield Check(Role.RELAY, "poll", progress.polled.age_seconds, poll_seconds)
        yield Check(Role.RELAY, "confirm", progress.confirmed.age_seconds, STALL_SECONDS)
    if Role.WORKER in settings.role:
        yield Check(Role.WORKER, "heartbeat", progress.heard.age_seconds, lease_seconds / 2)
        yield Check(Role.WORKER, "claim", progress.claimed.age_seconds, STALL_SECONDS)
        yield Check(Role.WORKER, "verdict", progress.recorded.age_seconds, STALL_SECONDS)
        for queue in settings.worker_queues:
            yield _consumer(Role.WORKER, queue, progress)
    if Role.DEAD_LETTER in settings.role:
        yield _consumer(Role.DEAD_LETTER, DLQ, progress)
    if Role.JANITOR in settings.role:
        yield Check(Role.JANITOR, "rescue", progress.rescued.age_seconds, lease_seconds / 6 + STALL_SECONDS)


def _consumer(role: Role, queue: str, progress: Progress) -> Check:
    return Check(role, f"consumer of {queue}", lambda: progress.detached_seconds(queue), STALL_SECONDS)


async def examine(settings: Settings, progress: Progress) -> Health:
    """Look at everything once, within DATABASE_SECONDS."""
    findings = [_find(check) for check in checks(settings, progress)]
    if Role.GATEWAY in settings.role:
        findings.insert(0, await _find_database(progress))
    return Health(all(finding.ok for finding in findings), findings)


def _find(check: Check) -> Finding:
    age_seconds = check.age_seconds()
    return Finding(
        role=check.role,
        check=check.name,
        ok=age_seconds is not None and age_seconds <= check.limit_seconds,
        age_seconds=None if age_seconds is None else round(age_seconds, 3),
        limit_seconds=check.limit_seconds,
    )


async def _find_database(progress: Progress) -> Finding:
    """Ask whether the database answers and its schema fits; the age is how long the answer took."""
    asked_at, error = progress.clock.now(), ""
    if progress.ask_database is None:
        error = "not yet opened"
    else:
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                await progress.ask_database()
        except TimeoutError:
            error = f"no answer within {DATABASE_SECONDS:g} seconds"
        except Exception as failure:  # noqa: BLE001 - whatever it is, the probe must say so
            error = f"{type(failure).__name__}: {failure}"
    return Finding(
        role=Role.GATEWAY,
        check="database",
        ok=not error,
        age_seconds=None if error else round(progress.clock.now() - asked_at, 3),
        limit_seconds=DATABASE_SECONDS,
        error=error,
    )
