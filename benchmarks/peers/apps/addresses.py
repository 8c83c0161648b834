"""Where the peers find PostgreSQL and RabbitMQ."""

import os

POSTGRES = os.environ["PEERS_POSTGRES"]
AMQP = os.environ["PEERS_AMQP"]


def sqlalchemy_url(driver: str) -> str:
    """Name the driver within the URL, as SQLAlchemy wants it."""
    return POSTGRES.replace("postgresql://", f"postgresql+{driver}://")
