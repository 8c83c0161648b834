"""The program of a child process: takes one piece of work after the other until the worker is gone."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import inspect
import os
import signal
import socket
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

from pipeline import logs
from pipeline.handlers.errors import HandlersError
from pipeline.handlers.registry import load
from pipeline.handlers.runners import OnLoop, run_sync
from pipeline.handlers.wire import LENGTH, Raised, Ready, Returned, Work, frame, work_decoder

if TYPE_CHECKING:
    from pipeline.handlers.registry import Handlers
    from pipeline.settings import LogFormat, LogLevel

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(log_format: str, log_level: str, http_addresses: str, *modules: str) -> None:
    """Load the handlers and serve; stdin is the socket to the worker, stdout is the worker's stderr."""
    _outlive_signals_but_not_the_worker()
    link = _take_link()
    works: SimpleQueue[Work] = SimpleQueue()
    threading.Thread(target=_listen, args=(link, works), daemon=True).start()
    try:
        handlers = load(modules, http_allow_private_addresses=http_addresses == "private")
    except HandlersError as error:
        sys.exit(str(error))
    os.dup2(1, 2)  # stderr was kept for a failing start
    # Casts, for importing the settings costs each child a tenth of a second.
    logs.configure(cast("LogFormat", log_format), cast("LogLevel", log_level))
    link.sendall(frame(Ready()))
    while True:
        link.sendall(frame(_answer(handlers, works.get())))


def _outlive_signals_but_not_the_worker() -> None:
    """Leave it to the worker when to stop.

    Ctrl-C and a service manager's SIGTERM reach every process, but a drain lets handlers finish. A handler
    that does nothing, unlike SIG_IGN, is not passed on to the programs that handlers start.
    """
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _take_link() -> socket.socket:
    """Move the socket away from stdin; no process that a handler starts or forks holds it open."""
    link = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.register_at_fork(after_in_child=lambda: os.close(link.detach()))
    return link


def _listen(link: socket.socket, works: SimpleQueue[Work]) -> None:
    """Queue the work; kill the whole group at once when the worker is gone, also under a running handler."""
    try:
        with link.makefile("rb") as stream:
            while head := stream.read(LENGTH.size):
                (length,) = LENGTH.unpack(head)
                works.put(work_decoder.decode(stream.read(length)))
    finally:
        os.killpg(os.getpid(), signal.SIGKILL)


def _answer(handlers: Handlers, work: Work) -> Returned | Raised:
    handler = handlers.get(work.kind)
    if handler is None:
        return Raised.of(
            LookupError(f"kind {work.kind!r} is not in the modules {', '.join(handlers.modules)}")
        )
    outcome: str | BaseException
    if inspect.iscoroutinefunction(handler.function):
        try:
            outcome = asyncio.run(OnLoop().run(handler, work.payload, work.context))
        except BaseException as error:  # noqa: BLE001 - user code; whatever it raises, this process serves on
            outcome = error
    else:
        outcome = run_sync(handler, work.payload, work.context)
    return Raised.of(outcome) if isinstance(outcome, BaseException) else Returned(outcome)
