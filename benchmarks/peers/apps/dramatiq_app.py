"""Dramatiq on RabbitMQ: confirms; it stores no results in PostgreSQL, so the task writes a row itself."""

import threading
from typing import Any

import dramatiq
import psycopg2
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.apps.addresses import AMQP, POSTGRES

dramatiq.set_broker(RabbitmqBroker(url=AMQP, confirm_delivery=True))

of_this_thread = threading.local()


def connected() -> Any:
    """Keep a connection to PostgreSQL for each thread of a worker."""
    if not hasattr(of_this_thread, "connection"):
        of_this_thread.connection = psycopg2.connect(POSTGRES)
        of_this_thread.connection.autocommit = True
    return of_this_thread.connection


@dramatiq.actor
def do_nothing(payload: dict[str, Any]) -> None:
    """Do nothing, and record that."""
    with connected().cursor() as cursor:
        cursor.execute("INSERT INTO dramatiq_done DEFAULT VALUES")


async def prepare() -> None:
    """Make the table that the tasks write to."""
    with connected().cursor() as cursor:
        cursor.execute("CREATE TABLE dramatiq_done (id bigserial PRIMARY KEY)")


async def enqueue(payload: dict[str, Any], tasks: int) -> None:
    """Send one after the other: a confirm is waited for by each."""
    for _ in range(tasks):
        do_nothing.send(payload)
