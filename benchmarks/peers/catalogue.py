"""Which peers are measured, how each is run, and how they differ from us."""

from __future__ import annotations

import msgspec

from benchmarks.programs import ROOT

ENVIRONMENT = ROOT / ".peers"
BIN = ENVIRONMENT / "bin"

APPS = "benchmarks.peers.apps"


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A task queue with its durable settings.

    `workers` are the commands of the processes that work, `recorded` the rows that stand for recorded tasks.
    `tasks` is how many a drain takes: enough for seconds, and no more than that. `serves` is the command of
    its gateway, where it has one.
    """

    name: str
    app: str
    workers: tuple[tuple[str, ...], ...]
    recorded: str
    tasks: int
    settings: str
    lacks: str
    adds: str
    serves: tuple[str, ...] = ()


PEERS = (
    Peer(
        name="Celery",
        app="celery",
        workers=(
            (
                *("celery", "-A", f"{APPS}.celery_app", "worker", "--concurrency=2", "--loglevel=ERROR"),
                *("-O", "fair", "--without-gossip", "--without-mingle"),
            ),
        ),
        recorded="celery_taskmeta WHERE status = 'SUCCESS'",
        tasks=5_000,
        settings="confirms, late acks, states and results in PostgreSQL; two processes, prefetch 64 each",
        lacks="no row before the broker has the task; no fence, so that a late run writes over a newer one",
        adds="chains, groups and chords; schedules; many brokers and result stores; remote control",
    ),
    Peer(
        name="Dramatiq",
        app="dramatiq",
        workers=(("dramatiq", f"{APPS}.dramatiq_app", "--processes=2", "--threads=8"),),
        recorded="dramatiq_done",
        tasks=20_000,
        settings="confirms, acks after the run; two processes of 8 threads; the task itself writes one row",
        lacks="no row before the broker has the task; no states; results only in Redis or Memcached",
        adds="middleware, pipelines and groups, rate limits",
    ),
    Peer(
        name="Taskiq",
        app="taskiq",
        workers=(
            (
                *("taskiq", "worker", f"{APPS}.taskiq_app:broker", "--workers=2", "--max-async-tasks=100"),
                *("--ack-type=when_saved", "--log-level=ERROR"),
            ),
        ),
        recorded="taskiq_results",
        tasks=20_000,
        settings="confirms, acks when the result is saved in PostgreSQL; two processes of 100 tasks at once",
        lacks="no row before the broker has the task; no states; no fence",
        adds="dependency injection into tasks, pipelines, many brokers and result stores",
    ),
    Peer(
        name="Procrastinate",
        app="procrastinate",
        workers=(("procrastinate", f"--app={APPS}.procrastinate_app.app", "worker", "--concurrency=100"),),
        recorded="procrastinate_jobs WHERE status = 'succeeded'",
        tasks=5_000,
        settings="PostgreSQL alone; one process of 100 tasks at once",
        lacks="no results: a job is known to have succeeded, and not with what",
        adds="locks, by which jobs follow one another; periodic tasks",
    ),
    Peer(
        name="PgQueuer",
        app="pgqueuer",
        workers=(("python", "-m", f"{APPS}.pgqueuer_app"),),
        recorded="pgqueuer_log WHERE status = 'successful'",
        tasks=50_000,
        settings="PostgreSQL alone; one process, batches of 100; its log of jobs is written in groups",
        lacks="no results; a job that has ended is a line of a log",
        adds="limits of rate and concurrency per entrypoint; schedules; a dashboard",
    ),
    Peer(
        name="Tutorial outbox",
        app="tutorial",
        workers=(
            ("python", "-m", f"{APPS}.tutorial_app", "outbox"),
            ("python", "-m", f"{APPS}.tutorial_app", "worker"),
        ),
        recorded="tutorial_tasks WHERE status = 'COMPLETED'",
        tasks=5_000,
        settings="SQLAlchemy, aio-pika; task and outbox row in one transaction; a commit for each step",
        lacks="no fence, no retries, no dead letters, no recovery of what its broker or a worker loses",
        adds="nothing, but it stores a task before it accepts it, as no other peer does, in 200 lines",
        serves=(
            *("uvicorn", f"{APPS}.tutorial_app:app", "--loop=uvloop", "--http=httptools"),
            "--log-level=warning",
        ),
    ),
)


def command(words: tuple[str, ...]) -> list[str]:
    """Find the program in the peers' own environment."""
    return [str(BIN / words[0]), *words[1:]]


def installed() -> bool:
    """Tell whether `make bench-peers` has been run."""
    return (ENVIRONMENT / "synced").exists()


def versions() -> dict[str, str]:
    """Read the versions from the peers' pinned requirements."""
    lines = (ROOT / "benchmarks" / "peers" / "requirements.txt").read_text().splitlines()
    return dict(line.partition(" ;")[0].split("==") for line in lines if "==" in line)
