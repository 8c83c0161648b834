"""What the nemesis can do: programs, PostgreSQL, RabbitMQ, and the network between them."""

from __future__ import annotations

from tests.chaos.harness.faults import network, postgres, programs, rabbitmq
from tests.chaos.harness.faults.fault import Bite, Fault, Scene

__all__ = ["ALL", "Bite", "Fault", "Scene", "named"]

ALL: tuple[Fault, ...] = (*programs.FAULTS, *postgres.FAULTS, *rabbitmq.FAULTS, *network.FAULTS)


def named(name: str) -> Fault:
    """Find a fault."""
    return next(fault for fault in ALL if fault.name == name)
