"""What a network does to what passes through it: it takes time, it loses, it swallows all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from random import Random


class Effect:
    """Proof that a fault bit: the chunks it met, their bytes, and how many connections they were of."""

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0
        self._connections: set[int] = set()

    @property
    def connections(self) -> int:
        return len(self._connections)

    def touched(self, connection: int) -> None:
        self._connections.add(connection)

    def met(self, connection: int, size: int) -> None:
        self.chunks += 1
        self.bytes += size
        self._connections.add(connection)


class Slow(Protocol):
    """Holds a chunk up."""

    effect: Effect

    def seconds(self) -> float:
        """Say for how long, 0 for not at all."""


class Delay:
    """Each chunk takes its time."""

    def __init__(self, low_seconds: float, high_seconds: float, rng: Random) -> None:
        self.effect = Effect()
        self._low_seconds, self._high_seconds, self._rng = low_seconds, high_seconds, rng

    def seconds(self) -> float:
        return self._rng.uniform(self._low_seconds, self._high_seconds)


class Loss:
    """A share of the chunks is lost, and comes when it is sent once more."""

    def __init__(self, share: float, stall_seconds: float, rng: Random) -> None:
        self.effect = Effect()
        self._share, self._stall_seconds, self._rng = share, stall_seconds, rng

    def seconds(self) -> float:
        return self._stall_seconds if self._rng.random() < self._share else 0.0


class Network:
    """The faults in force; none of them costs anything while there is none."""

    def __init__(self) -> None:
        self.slow: list[Slow] = []
        self.holes: list[Effect] = []

    def seconds(self, connection: int, size: int) -> float:
        """Say how long a chunk is held up by all of them."""
        total_seconds = 0.0
        for fault in self.slow:
            if seconds := fault.seconds():
                fault.effect.met(connection, size)
                total_seconds += seconds
        return total_seconds

    def lost(self, connection: int, size: int) -> None:
        """Let a chunk vanish in every hole."""
        for hole in self.holes:
            hole.met(connection, size)
