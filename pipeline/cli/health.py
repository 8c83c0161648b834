"""`baton health`: whether the process that answers on METRICS_PORT gets on; for people and for probes."""

import http.client
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.failure import ExitCode, Failure
from pipeline.cli.session import AsJson
from pipeline.cli.settings import Embedded, load_settings

if TYPE_CHECKING:
    from pipeline.settings import Settings

PATIENCE_SECONDS = 5.0
HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens, and where it is found
COLUMNS = {
    "role": "role",
    "check": "check",
    "ok": "ok",
    "age_seconds": "age s",
    "limit_seconds": "limit s",
    "error": "error",
}


def health(embedded: Embedded = False, as_json: AsJson = False) -> None:
    """Ask the process of this machine's METRICS_PORT whether it gets on with its work.

    Exit codes: 0 it does, 1 it does not or nobody answers, 2 METRICS_PORT is not set.
    """
    import json  # noqa: PLC0415 - a probe pays for every import

    from pipeline.cli.screen import Screen  # noqa: PLC0415 - as above

    body = _ask(load_settings(embedded=embedded).settings)
    try:
        found = json.loads(body)
        ready, rows = bool(found["ready"]), [_shown(check) for check in found["checks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure("what answers on METRICS_PORT is not Baton", ExitCode.FAILED) from error
    if as_json:
        Screen().script(body.decode())
    else:
        Screen().table(rows, COLUMNS)
    if not ready:
        raise typer.Exit(ExitCode.FAILED)


def _ask(settings: "Settings") -> bytes:
    host, port = HERE.get(settings.metrics_host, settings.metrics_host), settings.metrics_port
    if not port:
        raise Failure(
            "METRICS_PORT is 0, so each process takes a free port, which it logs as `answering operators`;"
            " to ask for its health, set METRICS_PORT to a number from 1 to 65535 before it is started"
        )
    # Not httpx: importing it takes longer than all the rest, and a probe runs every few seconds.
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"nobody answers on {host}:{port}: {error}", ExitCode.FAILED) from error
    finally:
        connection.close()


def _shown(check: dict[str, Any]) -> dict[str, Any]:
    age = "never" if check["age_seconds"] is None else f"{check['age_seconds']:.1f}"
    limit = f"{check['limit_seconds']:g}"
    return check | {"ok": "yes" if check["ok"] else "NO", "age_seconds": age, "limit_seconds": limit}
