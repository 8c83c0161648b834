"""The wiring: what each role of a process does, from its source to its last stage.

This is the one file that knows which ledger and which broker stand behind the ports.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import structlog

from pipeline.broker.memory import MemoryBroker
from pipeline.broker.rabbit import RabbitBroker
from pipeline.broker.topology import DLQ
from pipeline.clock import MonotonicClock
from pipeline.flow import Flow, flow
from pipeline.monitoring import MeasuredBroker, MeasuredExecute, MeasuredLedger
from pipeline.stages import (
    Beat,
    Bury,
    Claim,
    Consume,
    DeadLetter,
    Each,
    Every,
    Execute,
    HandOver,
    PollOutbox,
    Prune,
    Publish,
    Receive,
    Record,
    Rescue,
    Resend,
    RouteRetry,
    Settle,
    SurveyOutbox,
    SurveyQueues,
)
from pipeline.supply import Supply
from storage.database import Address, Database
from storage.embedded import EmbeddedPostgres
from storage.ledger import PostgresLedger
from storage.measurements import PostgresMeasurements
from storage.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pipeline.broker import Broker, Delivery
    from pipeline.duty import Duty
    from pipeline.handlers.registry import Handlers
    from pipeline.handlers.runners import Runners
    from pipeline.monitoring import Metrics, Progress
    from pipeline.ports import Ledger
    from pipeline.settings import Settings
    from pipeline.slots import Slots
    from pipeline.stages import Wave
    from storage.model import OutboxRow

log = structlog.get_logger()

MIGRATION_SECONDS = 3600.0
MEASUREMENT_SECONDS = 60.0
UPKEEP_ROUND_SECONDS = 10.0
PRUNE_ROUND_SECONDS = 10.0
SURVEY_ROUND_SECONDS = 10.0


class Ports(NamedTuple):
    """What a process works with; the metrics are those that ledger and broker count in."""

    ledger: Ledger
    broker: Broker
    metrics: Metrics


def relay(ports: Ports, settings: Settings) -> Flow[list[OutboxRow], None]:
    """Carry due outbox rows to the broker, in batches, two under way at once."""
    outbox = ports.ledger.outbox
    poll = PollOutbox(
        outbox,
        ports.ledger.signals,
        ready=ports.broker.ready,
        enough=Supply(ports.broker).is_enough,
        batch_size=settings.outbox_batch_size,
        poll_seconds=settings.outbox_poll_interval,
    )
    return (
        flow(poll, concurrency=2)
        | Publish(ports.broker, outbox.capacity)
        | Settle(outbox, settings.outbox_max_attempts)
    )


def worker(
    ports: Ports, settings: Settings, handlers: Handlers, runners: Runners, *, slots: Slots, duty: Duty
) -> tuple[Flow[Wave, None], Flow[None, None]]:
    """Run tasks, from the queue to the verdict; and the heartbeat that lets this worker start them."""
    runs = ports.ledger.runs
    ports.metrics.follow(slots)
    consume = Consume(ports.broker, settings.worker_queues, slots, runs, prefetch=settings.worker_prefetch)
    work = (
        flow(consume, concurrency=3)
        | Claim(runs, slots, duty, handlers.kinds)
        | HandOver()
        | Each(
            MeasuredExecute(Execute(handlers, runners, slots), ports.metrics, MonotonicClock()),
            RouteRetry(settings.retry_delays_seconds) | DeadLetter(),
            Record(runs),
            slots,
            duty,
        )
    )
    beat = Beat(
        ports.ledger.workers,
        runs,
        slots,
        duty,
        settings.worker_queues,
        unclaimed=lambda: consume.unclaimed,
    )
    return work, flow(Every(beat_seconds(settings))) | beat


def dead_letter(ports: Ports) -> Flow[Delivery, None]:
    """Keep what the DLQ's messages are evidence of."""
    return flow(Receive(ports.broker, DLQ), concurrency=4) | Bury(ports.ledger.dead_letters)


def janitor(ports: Ports, settings: Settings) -> list[Flow[None, None]]:
    """Dispatch again what was lost, remove what is over, and show what waits."""
    upkeep, workers = ports.ledger.upkeep, ports.ledger.workers
    lease_seconds = settings.worker_lease_seconds
    return [
        flow(Every(rescue_seconds(settings))) | Rescue(upkeep, workers, lease_seconds),
        flow(Every(UPKEEP_ROUND_SECONDS)) | Resend(upkeep, ports.broker, UPKEEP_ROUND_SECONDS),
        flow(Every(PRUNE_ROUND_SECONDS))
        | Prune(upkeep, settings.retention_seconds, settings.idempotency_ttl_seconds),
        flow(Every(SURVEY_ROUND_SECONDS)) | SurveyOutbox(upkeep, ports.ledger.outbox, ports.metrics),
        flow(Every(SURVEY_ROUND_SECONDS)) | SurveyQueues(ports.broker, ports.metrics),
    ]


def beat_seconds(settings: Settings) -> float:
    """Choose how often a worker beats: it sees a cancellation within that time, and a lease holds many."""
    return min(2.0, settings.worker_lease_seconds / 10)


def rescue_seconds(settings: Settings) -> float:
    """Choose how often a janitor looks for the dead: five looks and a dispatch fit into ten seconds."""
    return min(1.5, settings.worker_lease_seconds / 6)


@asynccontextmanager
async def open_ports(settings: Settings, metrics: Metrics, progress: Progress) -> AsyncIterator[Ports]:
    """Open the ledger and the broker that the settings name, measured; the embedded default brings both."""
    async with AsyncExitStack() as stack:
        if settings.embedded:
            server = await stack.enter_async_context(EmbeddedPostgres(settings.data_dir))
            address = _embedded_at(server.host)
            await _bring_up_to_date(address)
        else:
            address = address_of(settings)
        ledger = await stack.enter_async_context(
            PostgresLedger(
                address,
                pool_size=settings.postgres_pool_size,
                timeout_seconds=settings.request_timeout_seconds,
            )
        )
        broker: Broker = MemoryBroker() if settings.embedded else RabbitBroker(settings.rabbitmq_url, "baton")
        await stack.enter_async_context(broker)
        if settings.embedded:
            log.info("carrying on", tasks_sent_again=await _send_all_again(address))
        yield Ports(
            MeasuredLedger(ledger, metrics, progress), MeasuredBroker(broker, metrics, progress), metrics
        )


@asynccontextmanager
async def open_measurements(settings: Settings) -> AsyncIterator[PostgresMeasurements]:
    """Open what a measurement reads of a database that a service writes, the embedded one included.

    Raises EmbeddedError where that does not run.
    """
    embedded = settings.embedded
    address = _embedded_at(EmbeddedPostgres.host_in(settings.data_dir)) if embedded else address_of(settings)
    database = Database(address, size=1, application_name="baton bench", timeout_seconds=MEASUREMENT_SECONDS)
    try:
        yield PostgresMeasurements(database)
    finally:
        await database.close()


def _embedded_at(host: str) -> Address:
    server = EmbeddedPostgres
    return Address(host=host, port=server.port, user=server.user, password="", database=server.database)


def address_of(settings: Settings) -> Address:
    """Tell where the settings say PostgreSQL is."""
    return Address(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        password=settings.postgres_password,
        database=settings.postgres_db,
    )


async def _send_all_again(address: Address) -> int:
    """Hand out what the memory broker forgot when its last process ended; a large backlog takes its time."""
    async with PostgresLedger(address, pool_size=1, timeout_seconds=MIGRATION_SECONDS) as ledger:
        return await ledger.upkeep.restart_volatile()


async def _bring_up_to_date(address: Address) -> None:
    database = Database(address, size=1, timeout_seconds=MIGRATION_SECONDS)
    try:
        for name in await migrate(database):
            log.info("migration applied", migration=name)
    finally:
        await database.close()
