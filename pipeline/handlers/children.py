"""Child processes that run handlers, seen from the worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import structlog

from pipeline.handlers import wire
from pipeline.handlers.errors import ChildKilled, NotStarted, ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.handlers.context import Context
    from pipeline.handlers.definition import Handler

log = structlog.get_logger()

CLOSE_SECONDS = 5.0
LONGEST_TAIL = 4_000

# Not `-m`: that searches the working directory first, where a folder `pipeline` would hide this package.
# The child imports from where the worker does, whatever has been added to the path since it started.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
    "from pipeline.handlers.child import main; main(*sys.argv[2:])"
)


class InChild:
    """Runs handlers in child processes, one per slot, started when first needed and used again.

    A cancelled call kills its child, with all that the handler started in the child's process group.
    """

    def __init__(
        self,
        slots: int,
        modules: Sequence[str],
        *,
        http_allow_private_addresses: bool = False,
        log_format: str = "auto",
        log_level: str = "info",
    ) -> None:
        self._slots = asyncio.Semaphore(slots)
        # A start is nothing but work for a processor: a worker that started 64 at once, for all who stood
        # beside a deadly task, could not get its heartbeat through and was itself declared dead.
        self._starts = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        addresses = "private" if http_allow_private_addresses else "public"
        self._arguments = (log_format, log_level, addresses, *modules)
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()

    async def run(self, handler: Handler[..., Any], payload: bytes, context: Context) -> str:
        """Run in a child that may have run others before; raises ChildKilled if it dies meanwhile."""
        async with self._slots:
            child = self._take() or await self._start()
            reply = await child.talk(wire.frame(wire.Work(handler.kind, payload, context)))
            self._idle.append(child)
        return _result(reply)

    async def run_alone(self, handler: Handler[..., Any], payload: bytes, context: Context) -> str:
        """Run in a fresh child that is ended afterwards, whatever the handler's mode."""
        async with self._slots:
            child = await self._start()
            try:
                reply = await child.talk(wire.frame(wire.Work(handler.kind, payload, context)))
            finally:
                child.discard()
        return _result(reply)

    async def close(self) -> None:
        """Kill all children and wait until they are gone, for 5 seconds at most."""
        endings = [child.ended for child in self._children]
        for child in self._children:
            child.kill()
        while self._idle:
            self._idle.pop().discard()
        if endings:
            await asyncio.wait(endings, timeout=CLOSE_SECONDS)

    def _take(self) -> _Child | None:
        """Take an idle child; one that was killed while idle must not be blamed on the next task."""
        while self._idle:
            child = self._idle.pop()
            if child.alive():
                return child
            child.discard()
        return None

    async def _start(self) -> _Child:
        """Start a child, as many at a time as there are processors; raises NotStarted with its stderr."""
        async with self._starts:
            return await self._begin()

    async def _begin(self) -> _Child:
        with open(os.memfd_create("stderr"), "rb") as stderr:  # noqa: ASYNC230, PTH123 - memory, not a path
            child = _Child(self._arguments, stderr.fileno())
            self._children.add(child)
            child.ended.add_done_callback(lambda _: self._children.discard(child))
            try:
                await child.talk(b"")
            except ChildKilled:
                said = _tail(stderr.fileno()) or "(nothing on stderr)"
                how = ending(child.ended.result())
                raise NotStarted(f"the child process for handlers did not start: {how}: {said}") from None
            if said := _tail(stderr.fileno()):
                log.warning("child wrote to stderr while it started", pid=child.pid, stderr=said)
        return child


class _Child:
    """One child process: a socket to talk over, a pidfd that tells its end, whichever loop is in use."""

    def __init__(self, arguments: Sequence[str], stderr: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)  # noqa: FBT003 - its only parameter has no name
        with theirs:
            try:
                self._process = _spawn(arguments, theirs, stderr)
            except OSError as error:
                self._link.close()
                raise NotStarted(f"the child process for handlers did not start: {error}") from error
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def talk(self, said: bytes) -> wire.Reply:
        """Say something and wait for the answer; raises ChildKilled. A talk broken off is the last one."""
        try:
            await self._loop.sock_sendall(self._link, said)
            (length,) = wire.LENGTH.unpack(await self._read(wire.LENGTH.size))
            return wire.reply_decoder.decode(await self._read(length))
        except (EOFError, OSError):
            self.discard()
            raise ChildKilled(await asyncio.shield(self.ended)) from None
        except BaseException:
            self.discard()
            raise

    def alive(self) -> bool:
        """Ask the system, for the loop may not have heard of the end yet."""
        if self.ended.done():
            return False
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> None:
        """Kill the child and its process group; a talk under way raises ChildKilled."""
        if not self.ended.done():  # until then the pid cannot be another's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def discard(self) -> None:
        """Kill the child while nobody talks to it."""
        self.kill()
        self._link.close()

    def _reap(self) -> None:
        """Take the exit status, and first kill what the handler has left in the group."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.kill()
        self.ended.set_result(self._process.wait())

    async def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            received = await self._loop.sock_recv_into(self._link, rest)
            if not received:
                raise EOFError
            rest = rest[received:]
        return data


def _spawn(arguments: Sequence[str], link: socket.socket, stderr: int) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own; its stdout is our stderr, and soon so is its stderr."""
    return subprocess.Popen(  # noqa: S603 - our own program, and arguments from our settings
        [sys.executable, "-c", _PROGRAM, "\n".join(sys.path), *arguments],
        stdin=link.fileno(),
        stdout=2,
        stderr=stderr,
        start_new_session=True,
    )


def _tail(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    return os.pread(stderr, LONGEST_TAIL, max(0, size - LONGEST_TAIL)).decode(errors="replace").strip()


def _result(reply: wire.Reply) -> str:
    match reply:
        case wire.Returned(result):
            return result
        case wire.Raised():
            raise reply.exception()
        case wire.Ready():
            raise ChildKilled(0)
