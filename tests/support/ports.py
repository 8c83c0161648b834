"""Ports for servers that tests start, end and start again."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

HOST = "127.0.0.1"

# Below the range that the kernel gives to outgoing connections, so that a port is free again after a kill.
PORTS = range(20_000, 32_000)


def free_ports(number: int) -> list[int]:
    """Find ports that nobody listens on."""
    free: list[int] = []
    while len(free) < number:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            free.append(port)
    return free
