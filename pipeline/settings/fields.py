"""Every setting of Baton: its type, written form, meaning and default, and the rules between settings."""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import msgspec

from pipeline.broker.topology import LONGEST_HOLD_SECONDS, WORK_QUEUES
from pipeline.settings.forms import (
    Form,
    amqp_url,
    choice,
    decimal,
    flag,
    folder,
    hostname,
    hostname_or_socket_folder,
    listed,
    mask_all,
    plain,
    subset,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Role(StrEnum):
    """What a process does."""

    GATEWAY = "gateway"
    RELAY = "relay"
    WORKER = "worker"
    DEAD_LETTER = "dead-letter"
    JANITOR = "janitor"


class LogFormat(StrEnum):
    """How log lines look; `auto` is console on a terminal and json elsewhere."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_PG_NAME_BYTES = 63  # PostgreSQL cuts longer names silently (NAMEDATALEN), and then another database answers
_TOKEN_LENGTH = 16

_WORK_QUEUES = tuple(WORK_QUEUES.values())
_PG_NAME = plain(
    f"1 to {_PG_NAME_BYTES} bytes of text, in settings.toml within quotes",
    lambda name: 0 < len(name.encode()) <= _PG_NAME_BYTES,
)
_QUEUES = listed(
    plain("", _WORK_QUEUES.__contains__),
    f"up to three of {', '.join(_WORK_QUEUES)}, separated by commas, none twice",
)
_MODULES = listed(
    plain("", lambda name: all(part.isidentifier() for part in name.split("."))),
    "dotted names of Python modules, separated by commas, none twice",
)
_DELAYS = listed(
    whole(1, LONGEST_HOLD_SECONDS),
    f"whole numbers from 1 to {LONGEST_HOLD_SECONDS}, separated by commas, at least one",
    least=1,
    unique=False,
)
_TOKENS = listed(
    plain("", lambda token: len(token) >= _TOKEN_LENGTH and re.fullmatch(r"[!-~]+", token)),
    f"tokens of at least {_TOKEN_LENGTH} printable ASCII characters, no spaces, between commas, none twice",
    mask=mask_all,
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one process, converted; its repr holds no secret."""

    postgres_db: Annotated[str, _PG_NAME, "name of the database"] = "baton"
    postgres_user: Annotated[str, _PG_NAME, "user of the database"] = "baton"
    postgres_password: Annotated[
        str, plain("text, in settings.toml within quotes", mask=mask_all), "password of that user"
    ] = ""
    postgres_host: Annotated[
        str, hostname_or_socket_folder(), "host of PostgreSQL, or the folder of its unix socket"
    ] = "127.0.0.1"
    postgres_port: Annotated[int, whole(1, 65_535), "port of PostgreSQL"] = 5432
    postgres_pool_size: Annotated[int, whole(2, 100), "connections per process for requests"] = 4
    rabbitmq_url: Annotated[str, amqp_url(), "where RabbitMQ is, and as whom to log in"] = (
        "amqp://guest:guest@127.0.0.1:5672/"
    )

    embedded: Annotated[bool, flag(), "run an own PostgreSQL and an in-memory broker instead"] = False
    data_dir: Annotated[Path, folder(), "folder of the embedded PostgreSQL"] = Path(".baton")

    role: Annotated[frozenset[Role], subset(Role), "what this process does"] = frozenset(Role)
    handlers: Annotated[tuple[str, ...], _MODULES, "modules with handlers, besides the built-in ones"] = ()

    worker_queues: Annotated[tuple[str, ...], _QUEUES, "queues this worker consumes"] = _WORK_QUEUES
    worker_prefetch: Annotated[
        int, whole(1, 1000), "messages per queue a worker holds before their claim"
    ] = 4
    worker_concurrency: Annotated[int, whole(1, 10_000), "slots: handlers running at once in a worker"] = 64
    worker_lease_seconds: Annotated[
        float, decimal(2, 3600), "silence after which a worker is declared dead and its tasks are rescued"
    ] = 30.0
    task_timeout_seconds: Annotated[
        float, decimal(0.1, 86_400), "longest run of a task whose kind names no timeout"
    ] = 300.0
    http_allow_private_addresses: Annotated[
        bool, flag(), "let tasks of kind http.request call addresses that are not public"
    ] = False
    drain_seconds: Annotated[float, decimal(0, 3600), "grace for running tasks when a process stops"] = 25.0
    max_retries: Annotated[int, whole(0, 100), "repeats of a failed task before it becomes a dead letter"] = 3
    retry_delays_seconds: Annotated[
        tuple[int, ...],
        _DELAYS,
        "wait before each repeat, the last for all further ones; one retry queue each",
    ] = (5, 30, 120)

    outbox_poll_interval: Annotated[
        float, decimal(0.01, 60), "seconds between two looks of the relay into the outbox"
    ] = 1.0
    outbox_batch_size: Annotated[int, whole(1, 5000), "outbox rows the relay publishes at a time"] = 500
    outbox_max_attempts: Annotated[
        int, whole(1, 1000), "returns by the broker before an outbox row is FAILED"
    ] = 5

    host: Annotated[str, hostname(), "address the gateway listens on"] = "127.0.0.1"
    port: Annotated[int, whole(0, 65_535), "port the gateway listens on; 0 takes a free one"] = 8000
    api_tokens: Annotated[tuple[str, ...], _TOKENS, "bearer tokens that the gateway accepts"] = ()
    allow_anonymous: Annotated[bool, flag(), "serve callers without a token beyond this machine"] = False
    request_timeout_seconds: Annotated[
        float, decimal(0.1, 600), "deadline of a request, and in every role of a call to the database"
    ] = 10.0
    max_waiting_tasks: Annotated[
        int,
        whole(0, 10_000_000),
        "waiting tasks at which new ones are refused, LOW at half, MEDIUM at 3/4 of it; 0 is no limit",
    ] = 1_000_000
    idempotency_ttl_seconds: Annotated[
        int, whole(1, 31_536_000), "how long an Idempotency-Key is remembered"
    ] = 86_400
    retention_seconds: Annotated[
        int, whole(0, 315_360_000), "age at which ended tasks are pruned; 0 keeps them for ever"
    ] = 604_800

    metrics_host: Annotated[str, hostname(), "address where operators find metrics and health"] = "127.0.0.1"
    metrics_port: Annotated[
        int, whole(0, 65_535), "port of metrics and health of this process; 0 takes a free one"
    ] = 0

    log_format: Annotated[
        LogFormat, choice(LogFormat), "look of the log; auto: console on a terminal, else json"
    ] = LogFormat.AUTO
    log_level: Annotated[LogLevel, choice(LogLevel), "least severity that is logged"] = LogLevel.INFO

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={text!r}' for name, text in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        """Give Rich masked texts; what msgspec gives by itself holds the secrets."""
        return [
            (field.attribute, field.form.show(getattr(self, field.attribute))) for field in FIELDS.values()
        ]


class Field(msgspec.Struct, frozen=True):
    """One setting: its attribute in `Settings`, written form and one-line meaning."""

    attribute: str
    form: Form
    meaning: str


def _fields() -> Iterator[tuple[str, Field]]:
    for info in msgspec.structs.fields(Settings):
        _, form, meaning = get_args(info.type)
        yield info.name.upper(), Field(info.name, form, meaning)


FIELDS: dict[str, Field] = dict(_fields())


class Rule(msgspec.Struct, frozen=True):
    """A condition between settings: the names it reads, the one to blame first, and what is wrong (or "")."""

    reads: tuple[str, ...]
    fault: Callable[[Settings], str]


def _exposed_gateway(settings: Settings) -> str:
    guarded = settings.api_tokens or settings.allow_anonymous or _is_loopback(settings.host)
    if guarded or Role.GATEWAY not in settings.role:
        return ""
    return (
        "beyond this machine the gateway listens only with API_TOKENS or ALLOW_ANONYMOUS=true;"
        " allowed without: 127.0.0.1, ::1, localhost"
    )


def _split_embedded(settings: Settings) -> str:
    missing = [role for role in Role if role not in settings.role and role is not Role.GATEWAY]
    if not settings.embedded or not missing:
        return ""
    return (
        "with EMBEDDED the broker lives in the memory of one process, so that process needs every role that"
        f" uses it; allowed: all, or these too: {', '.join(missing)}"
    )


def _idle_worker(settings: Settings) -> str:
    idle = Role.WORKER in settings.role and not settings.worker_queues
    return f"the worker role needs at least one queue; allowed: {_QUEUES.allowed}" if idle else ""


RULES = (
    Rule(("HOST", "ROLE", "API_TOKENS", "ALLOW_ANONYMOUS"), _exposed_gateway),
    Rule(("ROLE", "EMBEDDED"), _split_embedded),
    Rule(("WORKER_QUEUES", "ROLE"), _idle_worker),
)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"
