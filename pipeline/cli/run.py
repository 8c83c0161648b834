"""`baton run`: the service itself, from its settings to a drained stop."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import pipeline
from pipeline.cli.failure import ExitCode, Failure
from pipeline.cli.outside import Outside
from pipeline.cli.session import DEFAULT_URL
from pipeline.cli.settings import Embedded, load_settings

if TYPE_CHECKING:
    from pipeline.cli.outside import Serve
    from pipeline.settings import Settings

PAYLOAD = '{"hello":"world"}'
ANYWHERE = {"http://0.0.0.0:": "http://127.0.0.1:", "http://[::]:": "http://[::1]:"}


def run(context: typer.Context, embedded: Embedded = False) -> None:
    """Run the service.

    Ctrl-C or SIGTERM stops it: what runs may finish within DRAIN_SECONDS. A second one exits at once.

    Exit codes: 0 stopped as asked, 1 it could not start or go on, 2 settings that cannot be used.
    """
    # One thread carries the driver's bytes; each more is one more to wake, a tenth of a short call.
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    # `baton --help` must not wait for what a server needs.
    with _hidden("rich"):
        from pipeline import logs  # noqa: PLC0415 - as said above

    settings = load_settings(embedded=embedded).settings
    logs.configure(settings.log_format, settings.log_level)
    _serve(settings, Outside.of(context).serve or import_module("pipeline.service").serve)


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Keep a module from being found: rich, which structlog would import unused, is a quarter of a start."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # as the import system documents it
    try:
        yield
    finally:
        del sys.modules[module]


def _serve(settings: "Settings", serve: "Serve") -> None:
    """Run the roles; what keeps them from starting becomes one message, a bug keeps its traceback."""
    import structlog  # noqa: PLC0415 - `baton --help` must not wait for it
    import uvloop  # noqa: PLC0415 - as above

    failures: list[BaseException] = []
    try:
        uvloop.run(serve(settings, lambda *urls: _announce(settings, *urls)))
    except* _expected() as group:
        failures = _leaves(group)
    if failures:
        structlog.get_logger().debug("stopped by a failure", exc_info=failures[0])
        messages = dict.fromkeys(str(failure) or type(failure).__name__ for failure in failures)
        raise Failure("\n".join(messages), ExitCode.FAILED)


def _expected() -> tuple[type[Exception], ...]:
    """List what the world outside may do to a start."""
    from pipeline.broker import BrokerError  # noqa: PLC0415 - `baton --help` must not wait for it
    from pipeline.handlers.errors import HandlersError  # noqa: PLC0415 - as above
    from pipeline.http_server import PortTaken  # noqa: PLC0415 - as above
    from storage.errors import StorageError  # noqa: PLC0415 - as above

    return (StorageError, BrokerError, HandlersError, PortTaken, OSError)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


def _announce(settings: "Settings", url: str, operators: str) -> None:
    """Say where everything is; machines that read the log are told in it."""
    import structlog  # noqa: PLC0415 - `baton --help` must not wait for it

    if settings.log_format == "json":
        structlog.get_logger().info("listening", url=url, operators=operators)
    else:
        from pipeline.cli.screen import Screen  # noqa: PLC0415 - as above

        Screen().say("\n".join(_places(settings, url, operators)))


def _places(settings: "Settings", url: str, operators: str) -> list[str]:
    for anywhere, here in ANYWHERE.items():
        url, operators = url.replace(anywhere, here), operators.replace(anywhere, here)
    return [
        "Baton is up; Ctrl-C stops it.",
        f"  API            {url}/api/v1",
        f"  operators      {operators}/health/ready and /metrics",
        f"  documentation  {url}/docs",
        *(f"                 {documents}" for documents in _documents()),
        f"  data           {_data(settings)}",
        *(["  token          export BATON_TOKEN=... (one of API_TOKENS)"] if settings.api_tokens else []),
        f"  try            {_submit_line(url)}",
        f"                 {_curl_line(url, with_token=bool(settings.api_tokens))}",
    ]


def _documents() -> list[Path]:
    """Find the documents of a checkout; an installed wheel has none."""
    documents = Path(pipeline.__file__).resolve().parents[1] / "documents"
    return [documents] if documents.is_dir() else []


def _data(settings: "Settings") -> str:
    from pipeline.settings.forms import mask_url  # noqa: PLC0415 - `baton --help` must not wait for it

    if settings.embedded:
        return f"{settings.data_dir.resolve()} (embedded PostgreSQL)"
    host = f"{settings.postgres_user}@{settings.postgres_host}:{settings.postgres_port}"
    return f"PostgreSQL {host}/{settings.postgres_db}, RabbitMQ {mask_url(settings.rabbitmq_url)}"


def _submit_line(url: str) -> str:
    option = [] if url == DEFAULT_URL else ["--url", url]
    return shlex.join([_command(), "submit", *option, "echo", PAYLOAD])


def _command() -> str:
    """Name this command so that another shell finds it: below the working directory, or else by its path."""
    script = Path(sys.argv[0]).absolute()
    if script.name != "baton" or shutil.which("baton") == str(script):
        return "baton"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def _curl_line(url: str, *, with_token: bool) -> str:
    token = ' -H "Authorization: Bearer $BATON_TOKEN"' if with_token else ""
    body = f'{{"kind":"echo","payload":{PAYLOAD}}}'
    return f"curl{token} -H 'Content-Type: application/json' -d '{body}' '{url}/api/v1/tasks?wait=20'"
