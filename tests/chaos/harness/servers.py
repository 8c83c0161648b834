"""The private PostgreSQL and RabbitMQ of a run."""

from __future__ import annotations

import os
import platform
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.harness.reports import commit
from tests.support.debian import require
from tests.support.ledgers import address_of, connected
from tests.support.rabbitmq_node import SCRIPTS, RabbitmqNode
from tests.support.servers import private_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.support.servers import OwnPostgres


class Servers(NamedTuple):
    """What the nemesis may break."""

    postgres: OwnPostgres
    rabbitmq: RabbitmqNode

    async def origin(self) -> dict[str, Any]:
        """Say what was run and on what, as every report does: the commit, the versions, the cores."""
        async with connected(address_of(self.postgres.home)) as database:
            [(postgres,)] = await database.fetch("SELECT current_setting('server_version')")
        rabbitmq = await self.rabbitmq.ctl("version")
        versions = {
            "python": platform.python_version(),
            "postgresql": postgres,
            "rabbitmq": rabbitmq.strip(),
            "cores": os.cpu_count(),
        }
        return {"commit": commit(), "versions": versions}


@asynccontextmanager
async def private_servers(
    folder: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Servers]:
    """Start both, and end them afterwards with all they hold; `folder` is made where it is missing.

    `settings` are those of PostgreSQL, over the ones of the embedded default.
    """
    require("rabbitmq-server", SCRIPTS)
    node = RabbitmqNode(_made(folder / "rabbitmq"))
    try:
        node.launch()
        async with private_postgres(folder / "postgres", settings) as postgres:
            await node.ready()
            yield Servers(postgres, node)
    finally:
        node.close()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
