"""Celery on RabbitMQ: confirms, late acks, each result a row in PostgreSQL."""

from typing import Any

from celery import Celery

from benchmarks.peers.apps.addresses import AMQP, sqlalchemy_url

app = Celery("celery_app", broker=AMQP, backend=f"db+{sqlalchemy_url('psycopg2')}")
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_track_started=True,
    worker_prefetch_multiplier=64,
)


@app.task
def do_nothing(payload: dict[str, Any]) -> dict[str, bool]:
    """Do nothing."""
    return {"ok": True}


async def prepare() -> None:
    """Make the tables of the result backend."""
    app.backend.ResultSession().close()


async def enqueue(payload: dict[str, Any], tasks: int) -> None:
    """Send over one connection."""
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        for _ in range(tasks):
            do_nothing.apply_async((payload,), producer=producer)
