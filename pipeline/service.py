"""The life of a process: opens its ports, runs its roles, and drains them in order."""

from __future__ import annotations

import asyncio
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
from pipeline.settings import Role
from pipeline.slots import Slots
from storage.errors import OutcomeUnknown, StorageError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pipeline.handlers.registry import Handlers
    from pipeline.roles import Ports
    from pipeline.settings import Settings

log = structlog.get_logger()

RECONNECT_SECONDS = 1.0
FORCED_EXIT = 130


async def serve(
    settings: Settings, announce: Callable[[str], None], stop: asyncio.Event | None = None
) -> None:
    """Run the roles of the settings until SIGTERM or SIGINT, then drain; a second signal exits at once.

    `announce` is called with the URL once the gateway listens. Raises what keeps a role from starting:
    SchemaMismatch, EmbeddedError, HandlersError, the gateway's PortTaken.
    """
    stop = stop or asyncio.Event()
    _listen_for_signals(stop)
    handlers = load(settings.handlers)
    async with roles.open_ports(settings) as ports:
        if await _ready(ports, stop):
            await _run(settings, ports, handlers, announce, stop)
    log.info("stopped")


async def _ready(ports: Ports, stop: asyncio.Event) -> bool:
    """Wait for the database for as long as it takes; False where the process is told to stop before."""
    told = False
    while not stop.is_set():
        try:
            await ports.ledger.ready()
        except (Unavailable, OutcomeUnknown) as error:
            if not told:
                log.warning("waiting for the database", error=str(error))
            told = True
            await asyncio.sleep(RECONNECT_SECONDS)
        else:
            return True
    return False


async def _run(
    settings: Settings,
    ports: Ports,
    handlers: Handlers,
    announce: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """Run all roles side by side. The relay stops last: until then what others hand back still moves."""
    drained = asyncio.Event()
    grace_seconds = settings.drain_seconds
    async with asyncio.TaskGroup() as relaying:
        if Role.RELAY in settings.role:
            relay = roles.relay(ports, settings).run(drained, grace_seconds)
            relaying.create_task(_named(Role.RELAY, relay))
        try:
            async with asyncio.TaskGroup() as others:
                for running in _others(settings, ports, handlers, announce, stop):
                    others.create_task(running)
                await stop.wait()
                log.info("draining", grace_seconds=grace_seconds)
        finally:
            drained.set()


def _others(
    settings: Settings,
    ports: Ports,
    handlers: Handlers,
    announce: Callable[[str], None],
    stop: asyncio.Event,
) -> list[Coroutine[Any, Any, None]]:
    grace_seconds = settings.drain_seconds
    running: list[Coroutine[Any, Any, None]] = []
    if Role.GATEWAY in settings.role:
        running.append(_named(Role.GATEWAY, _gateway(settings, ports, handlers, announce, stop)))
    if Role.WORKER in settings.role:
        running.append(_named(Role.WORKER, _worker(settings, ports, handlers, stop)))
    if Role.DEAD_LETTER in settings.role:
        running.append(_named(Role.DEAD_LETTER, roles.dead_letter(ports).run(stop, grace_seconds)))
    if Role.JANITOR in settings.role:
        flows = roles.janitor(ports, settings)
        running += [_named(Role.JANITOR, flow.run(stop, grace_seconds)) for flow in flows]
    return running


async def _named(role: Role, running: Coroutine[Any, Any, None]) -> None:
    """Let every log line of a role, and of the tasks it starts, say which role it is."""
    structlog.contextvars.bind_contextvars(role=role.value)
    await running


async def _worker(settings: Settings, ports: Ports, handlers: Handlers, stop: asyncio.Event) -> None:
    """Work until told to stop. The heart beats on while the last runs end, then the worker signs off."""
    slots = Slots(settings.worker_concurrency)
    duty = Duty(MonotonicClock(), settings.worker_lease_seconds)
    drained = asyncio.Event()
    logs = {"log_format": settings.log_format, "log_level": settings.log_level}
    async with Runners(settings.worker_concurrency, handlers, **logs) as runners:
        work, beat = roles.worker(ports, settings, handlers, runners, slots=slots, duty=duty)
        async with asyncio.TaskGroup() as group:
            group.create_task(beat.run(drained, 0.0))
            try:
                await work.run(stop, settings.drain_seconds)
            finally:
                drained.set()
    if not slots.held:
        await _sign_off(ports, duty)


async def _sign_off(ports: Ports, duty: Duty) -> None:
    """Close the worker's row; where that fails it is declared dead after a lease, and held nothing."""
    try:
        await ports.ledger.workers.close(duty.worker_id)
    except StorageError as error:
        log.warning("worker not signed off", worker_id=str(duty.worker_id), error=str(error))


async def _gateway(
    settings: Settings,
    ports: Ports,
    handlers: Handlers,
    announce: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """Serve HTTP. The gateway is found by name: it imports the pipeline, never the other way round."""
    gateway_settings = import_module("gateway.settings").GatewaySettings.from_settings(settings)
    app = import_module("gateway.app").create_app(ports.ledger, handlers, gateway_settings)
    server = import_module("gateway.server")
    await server.serve(app, settings.host, settings.port, stop, settings.drain_seconds, announce)


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
