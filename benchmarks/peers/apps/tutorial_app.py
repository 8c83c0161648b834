"""The outbox as tutorials have it: FastAPI, SQLAlchemy with asyncpg, aio-pika; a commit for each step.

`python -m benchmarks.peers.apps.tutorial_app outbox|worker` are its other two processes. The outbox is polled
every 50 ms, which is kinder than the usual second.
"""

import asyncio
import enum
import json
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import aio_pika
import uvloop
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import JSON, BigInteger, DateTime, Enum, Integer, String, Text, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.peers.apps.addresses import AMQP, sqlalchemy_url

POLL_SECONDS, BATCH, PREFETCH = 0.05, 100, 50
QUEUES = ["tutorial.high", "tutorial.medium", "tutorial.low"]

engine = create_async_engine(sqlalchemy_url("asyncpg"), pool_size=10, max_overflow=10)
Session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Status(enum.StrEnum):
    """Where a task is."""

    NEW = "NEW"
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Base(DeclarativeBase):
    """The tables."""


class Task(Base):
    """A task."""

    __tablename__ = "tutorial_tasks"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    priority: Mapped[str] = mapped_column(String(8))
    status: Mapped[Status] = mapped_column(Enum(Status), default=Status.NEW, index=True)
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Outbox(Base):
    """A message on its way to the broker."""

    __tablename__ = "tutorial_outbox"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    task_id: Mapped[uuid.UUID]
    routing_key: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16), default="PENDING", index=True)
    attempts: Mapped[int] = mapped_column(Integer, default=0)


class NewTask(BaseModel):
    """The body of POST."""

    name: str
    description: str | None = None
    priority: str = "MEDIUM"
    payload: dict[str, Any] = {}


class TaskView(BaseModel):
    """A task as it is shown."""

    model_config = {"from_attributes": True}

    id: uuid.UUID
    name: str
    description: str | None
    priority: str
    status: Status
    created_at: datetime


async def store(new: NewTask) -> Task:
    """Write task and message in one transaction."""
    async with Session() as session, session.begin():
        task = Task(**new.model_dump())
        session.add(task)
        await session.flush()
        key = f"tutorial.{new.priority.lower()}"
        session.add(Outbox(task_id=task.id, routing_key=key, payload={"task_id": str(task.id)}))
    return task


@app.post("/api/v1/tasks", response_model=TaskView, status_code=201)
async def create(new: NewTask) -> Task:
    """Hand a task over."""
    return await store(new)


@app.get("/api/v1/tasks/{task_id}", response_model=TaskView)
async def show(task_id: uuid.UUID) -> Task:
    """Show a task."""
    async with Session() as session:
        task = await session.get(Task, task_id)
    if task is None:
        raise HTTPException(404)
    return task


async def outbox() -> None:
    """Publish what is in the outbox, and mark it published."""
    connection = await aio_pika.connect_robust(AMQP)
    channel = await connection.channel()
    while True:
        async with Session() as session, session.begin():
            due = select(Outbox).where(Outbox.status == "PENDING").order_by(Outbox.id).limit(BATCH)
            rows = (await session.scalars(due.with_for_update(skip_locked=True))).all()
            for row in rows:
                message = aio_pika.Message(json.dumps(row.payload).encode(), delivery_mode=2)
                await channel.default_exchange.publish(message, routing_key=row.routing_key)
                row.status = "PUBLISHED"
                task = await session.get_one(Task, row.task_id)
                if task.status == Status.NEW:
                    task.status = Status.PENDING
        if len(rows) < BATCH:
            await asyncio.sleep(POLL_SECONDS)


async def worker() -> None:
    """Take tasks off the queues; each is acknowledged when its result is stored."""
    connection = await aio_pika.connect_robust(AMQP)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    for name in QUEUES:
        queue = await channel.get_queue(name)
        await queue.consume(handle)
    await asyncio.Future()


async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Do nothing, and record that."""
    async with message.process():
        task_id = uuid.UUID(json.loads(message.body)["task_id"])
        async with Session() as session, session.begin():
            task = await session.get(Task, task_id)
            if task is None or task.status in (Status.COMPLETED, Status.CANCELLED):
                return
            task.status, task.started_at = Status.IN_PROGRESS, datetime.now(UTC)
        async with Session() as session, session.begin():
            task = await session.get_one(Task, task_id)
            task.status, task.finished_at = Status.COMPLETED, datetime.now(UTC)
            task.result = {"ok": True}


async def prepare() -> None:
    """Make tables and queues."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    broker = await aio_pika.connect(AMQP)
    channel = await broker.channel()
    for name in QUEUES:
        await channel.declare_queue(name, durable=True)
    await broker.close()


async def enqueue(payload: dict[str, Any], tasks: int) -> None:
    """Store as its POST does, without HTTP."""
    for _ in range(tasks):
        await store(NewTask(name="noop", priority="HIGH", payload=payload))


if __name__ == "__main__":
    uvloop.run({"outbox": outbox, "worker": worker}[sys.argv[1]]())
