"""`baton bench`: measure a deployment of one's own, from outside."""

import asyncio
import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pipeline.cli.failure import ExitCode, Failure
from pipeline.cli.outside import Outside
from pipeline.cli.session import DEFAULT_URL, Token, Url, connect
from pipeline.cli.settings import load_settings
from pipeline.cli.submit import read_payload
from pipeline.cli.tasks import PriorityName

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from pipeline.bench.bench import Bench, Work
    from pipeline.bench.report import Report
    from pipeline.cli.screen import Screen
    from pipeline.cli.session import Session
    from pipeline.settings import Settings

PROBE_SECONDS = 20
PAYLOAD_BYTES = 200
INTERRUPTED = 130
COLUMNS = {"name": "figure", "value": "value"}

app = typer.Typer(
    no_args_is_help=True,
    help="Measure a deployment from outside: its API, the database of the settings, its processes.",
)

Kind = Annotated[str, typer.Option("--kind", help="Which handler is to run.")]
Payload = Annotated[
    str | None,
    typer.Option("--payload", help="JSON, or @FILE with JSON in it, or - for standard input."),
]
PayloadBytes = Annotated[
    int | None,
    typer.Option(
        "--payload-bytes", help='Or a payload {"text": …} of this size; 200 unless told.', min=11, max=262_000
    ),
]
Priority = Annotated[PriorityName, typer.Option("--priority", case_sensitive=False)]
Pid = Annotated[
    list[str] | None,
    typer.Option(
        "--pid",
        metavar="NAME=PID",
        help="A process of this machine whose CPU is counted, with its children; may be given several times.",
        show_default=False,
    ),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw the seconds of the measurement into an SVG file.")
]
Patience = Annotated[
    float, typer.Option("--patience-seconds", help="Give tasks up that stand still so long.", min=1)
]
Embedded = Annotated[
    bool, typer.Option("--embedded", help="Measure the `baton run --embedded` of this folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")]
WarmUpSeconds = Annotated[
    float, typer.Option("--warm-up-seconds", help="Load before the seconds that count.", min=0)
]
WarmUpTasks = Annotated[int, typer.Option("--warm-up-tasks", help="Tasks before those that count.", min=0)]


class Given(NamedTuple):
    """The options that all scenarios have."""

    context: typer.Context
    url: str
    token: str
    embedded: bool
    kind: str
    payload: str | None
    payload_bytes: int | None
    priority: PriorityName
    pid: list[str] | None
    plot: Path | None
    patience_seconds: float
    as_json: bool


@app.command()
def drain(
    context: typer.Context,
    *,
    tasks: Annotated[int, typer.Option(help="How many.", min=1)] = 100_000,
    warm_up_tasks: WarmUpTasks = 2_000,
    lead_seconds: Annotated[
        float | None,
        typer.Option(help="Time to write them in before they are due; measured unless told.", min=1),
    ] = None,
    connections: Annotated[int, typer.Option(help="To write them by.", min=1, max=64)] = 4,
    kind: Kind = "echo",
    payload: Payload = None,
    payload_bytes: PayloadBytes = None,
    priority: Priority = "LOW",
    pid: Pid = None,
    plot: Plot = None,
    patience_seconds: Patience = 120.0,
    url: Url = DEFAULT_URL,
    token: Token = "",
    embedded: Embedded = False,
    as_json: AsJson = False,
) -> None:
    """Write tasks that are all due at one moment, and measure how fast they are done.

    Exit codes: 0 all COMPLETED, 1 not all, or it could not be measured, 2 wrong options, 4 nobody answers.
    """
    from pipeline.bench import scenarios  # noqa: PLC0415 - `baton --help` must not wait for it

    _measure(
        Given(
            *(context, url, token, embedded, kind, payload, payload_bytes, priority),
            *(pid, plot, patience_seconds, as_json),
        ),
        lambda bench: scenarios.drain(
            bench,
            tasks,
            warm_up_tasks=warm_up_tasks,
            connections=connections,
            lead_seconds=lead_seconds,
        ),
    )


@app.command()
def accept(
    context: typer.Context,
    *,
    seconds: Annotated[float, typer.Option(help="How long.", min=0.1)] = 10.0,
    connections: Annotated[int, typer.Option(help="Each has one request under way.", min=1, max=10_000)] = 32,
    batch: Annotated[int, typer.Option(help="Tasks a request; more than 1 go to /tasks/batch.", min=1)] = 1,
    warm_up_seconds: WarmUpSeconds = 2.0,
    kind: Kind = "echo",
    payload: Payload = None,
    payload_bytes: PayloadBytes = None,
    priority: Priority = "LOW",
    pid: Pid = None,
    plot: Plot = None,
    url: Url = DEFAULT_URL,
    token: Token = "",
    embedded: Embedded = False,
    as_json: AsJson = False,
) -> None:
    """Post tasks as fast as they are answered, and measure how many are accepted.

    Exit codes: 0 measured, 1 it could not be, 2 wrong options, 4 nobody answers.
    """
    from pipeline.bench import scenarios  # noqa: PLC0415 - `baton --help` must not wait for it

    def scenario(bench: "Bench") -> "Awaitable[Report]":
        if batch > bench.most_in_batch:
            raise Failure(f"--batch {batch}: allowed: 1 to {bench.most_in_batch} with this payload")
        return scenarios.accept(
            bench, seconds, connections=connections, batch=batch, warm_up_seconds=warm_up_seconds
        )

    _measure(
        Given(
            *(context, url, token, embedded, kind, payload, payload_bytes, priority),
            *(pid, plot, 1.0, as_json),
        ),
        scenario,
        runs=False,
    )


@app.command()
def latency(
    context: typer.Context,
    *,
    tasks: Annotated[int, typer.Option(help="How many, one after the other.", min=1)] = 300,
    warm_up_tasks: WarmUpTasks = 20,
    kind: Kind = "echo",
    payload: Payload = None,
    payload_bytes: PayloadBytes = None,
    priority: Priority = "MEDIUM",
    pid: Pid = None,
    plot: Plot = None,
    url: Url = DEFAULT_URL,
    token: Token = "",
    embedded: Embedded = False,
    as_json: AsJson = False,
) -> None:
    """Post one task at a time with ?wait=60, and measure when the answer shows it COMPLETED.

    Exit codes: 0 all COMPLETED, 1 not all, or it could not be measured, 2 wrong options, 4 nobody answers.
    """
    from pipeline.bench import scenarios  # noqa: PLC0415 - `baton --help` must not wait for it

    _measure(
        Given(
            *(context, url, token, embedded, kind, payload, payload_bytes, priority),
            *(pid, plot, 1.0, as_json),
        ),
        lambda bench: scenarios.latency(bench, tasks, warm_up_tasks=warm_up_tasks),
    )


@app.command()
def mixed(
    context: typer.Context,
    *,
    rate: Annotated[float, typer.Option(help="Tasks a second, whatever becomes of them.", min=0.1)] = 1_000.0,
    seconds: Annotated[float, typer.Option(help="How long.", min=0.1)] = 60.0,
    connections: Annotated[
        int, typer.Option(help="As many requests may be under way.", min=1, max=10_000)
    ] = 128,
    warm_up_seconds: WarmUpSeconds = 5.0,
    kind: Kind = "echo",
    payload: Payload = None,
    payload_bytes: PayloadBytes = None,
    priority: Priority = "MEDIUM",
    pid: Pid = None,
    plot: Plot = None,
    patience_seconds: Patience = 120.0,
    url: Url = DEFAULT_URL,
    token: Token = "",
    embedded: Embedded = False,
    as_json: AsJson = False,
) -> None:
    """Post tasks at a steady rate, and measure from when each was to be sent until it has ended.

    Exit codes: 0 all COMPLETED, 1 not all, or it could not be measured, 2 wrong options, 4 nobody answers.
    """
    from pipeline.bench import scenarios  # noqa: PLC0415 - `baton --help` must not wait for it

    _measure(
        Given(
            *(context, url, token, embedded, kind, payload, payload_bytes, priority),
            *(pid, plot, patience_seconds, as_json),
        ),
        lambda bench: scenarios.mixed(
            bench, rate, seconds, connections=connections, warm_up_seconds=warm_up_seconds
        ),
    )


def _measure(given: Given, scenario: "Callable[[Bench], Awaitable[Report]]", *, runs: bool = True) -> None:
    """Check what was given, then run the scenario and show what it found.

    A first task tells much of it; where it `runs` it must complete.
    """
    import uvloop  # noqa: PLC0415 - `baton --help` must not wait for it

    from pipeline.bench.bench import new_tag  # noqa: PLC0415 - as above
    from pipeline.cli.screen import Screen  # noqa: PLC0415 - as above

    for name, value in given.context.params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Failure(f"--{name.replace('_', '-')} {value}: allowed: a number")
    processes = _processes(given.pid or [])
    work = _work(given)
    if given.plot is not None and (given.plot.is_dir() or not given.plot.absolute().parent.is_dir()):
        raise Failure(f"--plot {given.plot}: allowed: a file in a folder that is there")
    settings = load_settings(embedded=given.embedded).settings
    tag = new_tag()
    with connect(given.context, given.url, given.token, as_json=given.as_json) as session:
        probe = _probe(session, work, tag, PROBE_SECONDS if runs else 0)
    screen = Screen()
    report = uvloop.run(_run(given, work, tag, probe, processes, settings, scenario, screen))
    _show(screen, report, given, settings)


async def _run(  # noqa: PLR0917 - all that was given, and what was made of it
    given: Given,
    work: "Work",
    tag: str,
    probe: "UUID",
    processes: dict[str, int],
    settings: "Settings",
    scenario: "Callable[[Bench], Awaitable[Report]]",
    screen: "Screen",
) -> "Report":
    from pipeline.bench.bench import Bench, CannotMeasure  # noqa: PLC0415 - `baton --help` must not wait
    from pipeline.bench.http import Target  # noqa: PLC0415 - as above
    from pipeline.bench.load import Unreachable  # noqa: PLC0415 - as above
    from pipeline.roles import open_measurements  # noqa: PLC0415 - as above
    from storage.errors import StorageError  # noqa: PLC0415 - as above

    open_them = Outside.of(given.context).open_measurements or open_measurements
    where = _where(settings)
    try:
        async with open_them(settings) as measurements:
            if not await measurements.ends([probe]):
                raise Failure(
                    f"the service at {given.url} does not write to the database of the settings,"
                    f" {where}{_hint(settings)}"
                )
            with screen.progress() as progress:
                bench = Bench(
                    Target.of(given.url, given.token),
                    measurements,
                    work,
                    processes=processes,
                    progress=progress,
                    stop=_on_interrupt(screen),
                    patience_seconds=given.patience_seconds,
                    tag=tag,
                )
                return await scenario(bench)
    except Unreachable as error:
        raise Failure(str(error), ExitCode.UNANSWERED) from error
    except CannotMeasure as error:
        raise Failure(str(error), ExitCode.FAILED) from error
    except StorageError as error:
        raise Failure(f"{where}: {error}{_hint(settings)}", ExitCode.FAILED) from error


def _on_interrupt(screen: "Screen") -> asyncio.Event:
    """Let the first Ctrl-C end the measurement with what it has; a second one ends the process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        screen.remark("Stopping; what was measured so far follows. Ctrl-C again ends at once.")
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    return stop


def _probe(session: "Session", work: "Work", tag: str, seconds: float) -> "UUID":
    """Hand one task over as every command does, whose errors say what is wrong with the options."""
    from uuid import UUID  # noqa: PLC0415 - `baton --help` must not wait for it

    task = session.api.post("/tasks", work.task(tag)).json()
    if seconds:
        task = session.api.wait(task["id"], seconds).json()
        if task["status"] != "COMPLETED":
            error = (
                task["errors"][-1]["message"] if task["errors"] else "is a worker up that knows this kind?"
            )
            raise Failure(
                f"a first task of the kind {work.kind} is {task['status']} after {seconds:g} s: {error}",
                ExitCode.FAILED,
            )
    return UUID(task["id"])


def _work(given: Given) -> "Work":
    from pipeline.bench.bench import Work  # noqa: PLC0415 - `baton --help` must not wait for it
    from storage.model import Priority as Level  # noqa: PLC0415 - as above

    level = Level[given.priority]
    if given.payload is None:
        return Work.of_size(given.payload_bytes or PAYLOAD_BYTES, given.kind, level)
    if given.payload_bytes is not None:
        raise Failure("--payload-bytes: allowed: one of --payload and --payload-bytes")
    return Work(given.kind, bytes(read_payload(given.payload)), level)


def _processes(named: list[str]) -> dict[str, int]:
    from pipeline.bench.costs import GENERATOR, Processes  # noqa: PLC0415 - `baton --help` must not wait

    found: dict[str, int] = {}
    for text in named:
        name, _, number = text.rpartition("=")
        if not name or not number.isdecimal():
            raise Failure(f"--pid {text}: allowed: NAME=PID, such as worker=1234")
        if name in {*found, GENERATOR}:
            raise Failure(f"--pid {text}: this name is taken; allowed: each name once")
        if Processes().started(int(number)) is None:
            raise Failure(f"--pid {text}: allowed: a process that runs on this machine, which is Linux")
        found[name] = int(number)
    return found


def _show(screen: "Screen", report: "Report", given: Given, settings: "Settings") -> None:
    import msgspec  # noqa: PLC0415 - `baton --help` must not wait for it

    from pipeline.bench.report import remarks  # noqa: PLC0415 - as above

    if given.as_json:
        screen.script(msgspec.json.encode(report).decode())
    else:
        screen.table([{"name": name, "value": value} for name, value in report.table()], COLUMNS)
    for remark in remarks(report):
        screen.remark(remark)
    if given.plot is not None:
        _plot(report, given.plot)
        screen.remark(f"The seconds are drawn in {given.plot}.")
    seconds = settings.retention_seconds
    screen.remark(
        f"{report.written + 1:,} tasks with the tag {report.setup.tag} were put into the ledger; "
        + (
            f"RETENTION_SECONDS ({seconds}) removes them."
            if seconds
            else "RETENTION_SECONDS is 0: they stay."
        )
    )
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if faults := report.faults():
        raise Failure("\n".join(faults), ExitCode.FAILED)


def _plot(report: "Report", file: Path) -> None:
    from pipeline.bench.plot import plot  # noqa: PLC0415 - leather is loaded only where it draws

    try:
        file.write_text(plot(report))
    except OSError as error:
        raise Failure(f"--plot {file}: {error.strerror}", ExitCode.FAILED) from error


def _where(settings: "Settings") -> str:
    if settings.embedded:
        return f"{settings.data_dir.resolve()} (embedded PostgreSQL)"
    return f"{settings.postgres_host}:{settings.postgres_port}/{settings.postgres_db}"


def _hint(settings: "Settings") -> str:
    """Name what leads to another database: who tried `make run` has none but the embedded one."""
    if settings.embedded:
        return ""
    return "; `baton settings` shows what is set; for a `baton run --embedded` of this folder add --embedded"
