"""The life of a process: opens its ports, runs its roles, and drains them in order."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from importlib import import_module
from typing import TYPE_CHECKING, Any

import structlog

from pipeline import roles
from pipeline.clock import MonotonicClock
from pipeline.duty import Duty
from pipeline.handlers.registry import load
from pipeline.handlers.runners import Runners
from pipeline.monitoring import Metrics, Progress
from pipeline.monitoring.listener import listening
from pipeline.settings import Role
from pipeline.slots import Slots
from storage.errors import OutcomeUnknown, StorageError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from uuid import UUID

    from pipeline.handlers.registry import Handlers
    from pipeline.roles import Ports
    from pipeline.settings import Settings

log = structlog.get_logger()

RECONNECT_SECONDS = 1.0
FORCED_EXIT = 130


async def serve(
    settings: Settings, announce: Callable[[str, str], None], stop: asyncio.Event | None = None
) -> None:
    """Run the roles of the settings until SIGTERM or SIGINT, then drain; a second signal exits at once.

    `announce` is called once the gateway listens, with its URL and that for operators. Raises what keeps a
    role from starting: SchemaMismatch, EmbeddedError, HandlersError, PortTaken.
    """
    stop = stop or asyncio.Event()
    _listen_for_signals(stop)
    handlers = load(settings.handlers, http_allow_private_addresses=settings.http_allow_private_addresses)
    metrics, progress = Metrics(settings.role, handlers.kinds), Progress(MonotonicClock())
    # Operators are answered first and last: also while the rest waits for a database, or drains.
    async with (
        listening(settings, metrics, progress) as operators,
        roles.open_ports(settings, metrics, progress) as ports,
    ):
        if await _ready(ports, stop, repr(roles.address_of(settings))):
            _spare_the_collector()
            log.info("started", roles=sorted(settings.role))
            await Process(settings, ports, handlers, lambda url: announce(url, operators), stop).run()
    log.info("stopped")


def _spare_the_collector() -> None:
    """Let Python's collector of cycles leave alone what is there by now, and come seldom.

    What a task needs goes away without it, but for how many there are it came at every wave, and walked over
    all modules: a third of a worker's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


async def _ready(ports: Ports, stop: asyncio.Event, server: str) -> bool:
    """Wait for the database for as long as it takes; False where the process is told to stop before."""
    told = False
    while not stop.is_set():
        try:
            await ports.ledger.ready()
        except (Unavailable, OutcomeUnknown) as error:
            if not told:
                log.warning("waiting for the database", server=server, error=str(error))
            told = True
            await asyncio.sleep(RECONNECT_SECONDS)
        else:
            return True
    return False


class Process:
    """The roles of one process, and what they share."""

    def __init__(
        self,
        settings: Settings,
        ports: Ports,
        handlers: Handlers,
        announce: Callable[[str], None],
        stop: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._handlers = handlers
        self._announce = announce
        self._stop = stop
        self._grace_seconds = settings.drain_seconds

    async def run(self) -> None:
        """Run all roles side by side. The relay stops last: until then what others hand back still moves."""
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as relaying:
            if Role.RELAY in self._settings.role:
                relay = roles.relay(self._ports, self._settings).run(drained, self._grace_seconds)
                relaying.create_task(_named(Role.RELAY, relay))
            try:
                async with asyncio.TaskGroup() as others:
                    for role, running in self._others():
                        others.create_task(_named(role, running))
                    await self._stop.wait()
                    log.info("draining", grace_seconds=self._grace_seconds)
            finally:
                drained.set()

    def _others(self) -> Iterator[tuple[Role, Coroutine[Any, Any, None]]]:
        wanted = self._settings.role
        if Role.GATEWAY in wanted:
            yield Role.GATEWAY, self._gateway()
        if Role.WORKER in wanted:
            yield Role.WORKER, self._worker()
        if Role.DEAD_LETTER in wanted:
            yield Role.DEAD_LETTER, roles.dead_letter(self._ports).run(self._stop, self._grace_seconds)
        if Role.JANITOR in wanted:
            for flow in roles.janitor(self._ports, self._settings):
                yield Role.JANITOR, flow.run(self._stop, self._grace_seconds)

    async def _worker(self) -> None:
        """Work until told to stop. The heart beats on while the last runs end, then the worker signs off."""
        settings = self._settings
        slots = Slots(settings.worker_concurrency)
        duty = Duty(MonotonicClock(), settings.worker_lease_seconds)
        drained = asyncio.Event()
        logs = {"log_format": settings.log_format, "log_level": settings.log_level}
        async with Runners(settings.worker_concurrency, self._handlers, **logs) as runners:
            work, beat = roles.worker(self._ports, settings, self._handlers, runners, slots=slots, duty=duty)
            async with asyncio.TaskGroup() as group:
                group.create_task(beat.run(drained, 0.0))
                try:
                    await work.run(self._stop, self._grace_seconds)
                finally:
                    drained.set()
        await self._sign_off(duty.worker_id)

    async def _sign_off(self, worker_id: UUID) -> None:
        """Give up what the database counts as this worker's, and close its row.

        It holds what it has claimed without hearing of it, and what it has run without being heard. Where the
        database does not answer, the worker is declared dead, and that counts as a loss.
        """
        runs, workers = self._ports.ledger.runs, self._ports.ledger.workers
        try:
            if left := await workers.held_by(worker_id):
                await runs.release([holding.reference for holding in left], worker_id)
            await workers.close(worker_id)
        except StorageError as error:
            log.warning("not signed off", worker_id=str(worker_id), error=str(error))
        else:
            log.info("signed off", worker_id=str(worker_id), given_up=len(left))

    async def _gateway(self) -> None:
        """Serve HTTP. The gateway is found by name: it imports the pipeline, never the other way round."""
        settings = self._settings
        gateway_settings = import_module("gateway.settings").GatewaySettings.from_settings(settings)
        app = import_module("gateway.app").create_app(
            self._ports.ledger, self._handlers, gateway_settings, self._ports.metrics
        )
        server = import_module("gateway.server")
        await server.serve(app, settings.host, settings.port, self._stop, self._grace_seconds, self._announce)


async def _named(role: Role, running: Coroutine[Any, Any, None]) -> None:
    """Let every log line of a role, and of the tasks it starts, say which role it is."""
    structlog.contextvars.bind_contextvars(role=role.value)
    await running


def _listen_for_signals(stop: asyncio.Event) -> None:
    def told() -> None:
        if stop.is_set():
            log.warning("told twice, leaving at once")
            # Not sys.exit: an interpreter that ends with a driver's call in flight dies in it.
            os._exit(FORCED_EXIT)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
