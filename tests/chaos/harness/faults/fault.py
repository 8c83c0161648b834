"""A fault: how it is done, and by what it is known that it bit. One that did not bite does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from tests.chaos.harness.deployment import Deployment, Program

LEASE_SECONDS = 3.0


class Bite(NamedTuple):
    """Whether a fault bit, and how that is known."""

    bit: bool
    proof: str


class Scene(NamedTuple):
    """Where a fault happens: `target` is a program's name, or the table that is locked."""

    deployment: Deployment
    target: str
    rng: random.Random

    @property
    def program(self) -> Program:
        """The program that it happens to."""
        return self.deployment.programs[self.target]


class Fault(NamedTuple):
    """One class of fault.

    `targets` are programs (or roles of programs), or tables; none for what happens to a whole server.
    Two faults with a word of `excludes` in common do not overlap: the one would hide the other.
    """

    name: str
    happen: Callable[[Scene], Awaitable[Bite]]
    targets: tuple[str, ...] = ()
    excludes: frozenset[str] = frozenset()
