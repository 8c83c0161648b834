"""A RabbitMQ node of our own, from the machine's or Debian's binaries."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.support.ports import HOST, free_ports
from tests.support.servers import RabbitmqError, RabbitmqServer, output_of

# Debian's wrappers in /usr/sbin refuse other users and ignore HOME; the scripts themselves do not.
SCRIPTS = Path("/usr/lib/rabbitmq/bin")

BOOT_SECONDS = 120.0
POLL_SECONDS = 0.05

CONFIGURATION = """
default_user = baton
default_pass = baton
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 64000000
"""


class RabbitmqNode(RabbitmqServer):
    """A node with its own name, cookie, folders, ports and epmd, from `launch` to `close`."""

    def __init__(self, folder: Path) -> None:
        self._has_erl_call = _own_name_resolves()
        self.vhosts_at_once = 1 if self._has_erl_call else 20
        self._folder = folder
        self.host = HOST
        self.port, distribution_port, self._epmd_port = free_ports(3)
        super().__init__(f"amqp://baton:baton@{HOST}:{self.port}")
        self._name = f"baton@{HOST}"  # an address, since a bare root may not resolve even localhost
        self._cookie = secrets.token_hex(16)
        self._environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            # The script then becomes the broker instead of watching over it: one process, one signal ends it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        self._epmd: subprocess.Popen[bytes] | None = None
        self._broker: subprocess.Popen[bytes] | None = None

    def pids(self) -> list[int]:
        """List the broker's process; it has children."""
        return [self._broker.pid] if self._broker else []

    def launch(self) -> None:
        """Start the programs without waiting for them; in the main thread, for they die with their thread."""
        if self._epmd is None:
            self._furnish()
            # Left to itself Erlang starts an epmd that outlives it.
            self._epmd = self._start("epmd", "-port", str(self._epmd_port), "-address", HOST)
            self._wait_for_epmd(self._epmd)
        self._broker = self._start(str(SCRIPTS / "rabbitmq-server"))

    async def ready(self) -> None:
        """Return when the broker takes connections; raises RabbitmqError with the end of its log."""
        answer = "nothing"
        for _ in range(round(BOOT_SECONDS / POLL_SECONDS)):
            if self._broker is None or self._broker.poll() is not None:
                break
            try:
                answer = await self.evaluate("rabbit:is_running().")
            except RabbitmqError as error:
                answer = str(error)
            if answer == "true":
                return
            await asyncio.sleep(POLL_SECONDS)
        said = (self._folder / "output").read_text()[-2000:]
        raise RabbitmqError(f"RabbitMQ did not start; it last answered {answer}, and wrote {said}")

    async def start(self) -> None:
        """Start again after `kill`, on the same folders and ports."""
        self.launch()
        await self.ready()

    def kill(self) -> None:
        """End the broker by kill -9; a quorum queue declared in the last second may not survive it."""
        if self._broker:
            self._broker.kill()
            self._broker.wait()

    def close(self) -> None:
        """End everything and remove the folder."""
        self.kill()
        if self._epmd:
            self._epmd.kill()
            self._epmd.wait()
        shutil.rmtree(self._folder)

    async def stop_app(self) -> None:
        await self.ctl("stop_app")

    async def start_app(self) -> None:
        await self.ctl("start_app")

    async def ctl(self, *arguments: str) -> str:
        command = (str(SCRIPTS / "rabbitmqctl"), "--quiet", *arguments)
        return await output_of(*command, environment=self._environment)

    async def evaluate(self, expression: str) -> str:
        """Return the value of an Erlang expression; by erl_call in milliseconds, else in up to a second."""
        if not self._has_erl_call:
            return await self.ctl("eval", expression)
        command = ("erl_call", "-name", self._name, "-c", self._cookie, "-e")
        printed = await output_of(*command, say=f"{expression}\n", environment=self._environment)
        if not printed.startswith("{ok, "):
            raise RabbitmqError(f"{expression}: {printed}")
        return printed.removeprefix("{ok, ").removesuffix("}")

    def _furnish(self) -> None:
        files = {
            "rabbitmq.conf": CONFIGURATION,
            "rabbitmq-env.conf": "",
            "enabled_plugins": "[].\n",
            ".erlang.cookie": self._cookie,
        }
        for name, text in files.items():
            (self._folder / name).write_text(text)
        (self._folder / ".erlang.cookie").chmod(0o400)

    def _wait_for_epmd(self, epmd: subprocess.Popen[bytes]) -> None:
        while epmd.poll() is None:
            with suppress(OSError), socket.create_connection((HOST, self._epmd_port)):
                return
            time.sleep(POLL_SECONDS)
        raise RabbitmqError(f"epmd ended: {(self._folder / 'output').read_text()[-2000:]}")

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / "output").open("ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment,
            )


def _own_name_resolves() -> bool:
    """Tell whether erl_call works: it crashes where the machine's name does not resolve."""
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return False
    return True
