"""The four measurements: drain, accept, latency, mixed.

Each submits tasks through the gateway and gives a frozen report. Where the Bench's `stop` is set it ends
early, with what was measured so far. They raise Unreachable, the errors of storage.errors, and CannotMeasure.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID  # noqa: TC003 - msgspec resolves the annotations at run time

import msgspec

from pipeline.bench.bench import CannotMeasure, compare_clocks
from pipeline.bench.costs import STATISTICS_SECONDS
from pipeline.bench.load import ClosedLoop, OpenLoop
from pipeline.bench.report import MISSING, UNANSWERED, Accept, Drain, Latencies, Mixed, OneAtATime, timeline
from storage.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pipeline.bench.bench import Bench, Offset
    from pipeline.bench.load import Exchange
    from storage.measurements import End

WAIT_SECONDS = 60
LEAD_FACTOR, LEAD_SECONDS = 1.5, 4.0


class _Shown(msgspec.Struct):
    id: UUID
    status: str


class _ShownBatch(msgspec.Struct):
    items: list[_Shown]


class _Problem(msgspec.Struct):
    title: str
    detail: str = ""


_read_task = msgspec.json.Decoder(_Shown).decode
_read_batch = msgspec.json.Decoder(_ShownBatch).decode


class _Submitted(NamedTuple):
    """Batches that were handed over."""

    ids: list[UUID]
    seconds: float
    answers: Counter[str]


async def drain(
    bench: Bench,
    tasks: int,
    *,
    warm_up_tasks: int = 2_000,
    connections: int = 4,
    lead_seconds: float | None = None,
) -> Drain:
    """Write tasks that are all due at one moment, and measure how soon after it the last has ended.

    The moment is `lead_seconds` after the first batch is sent; where none are given, as many as the rate of
    the warm-up's batches tells, so there is at least one. Where it came before all were written
    CannotMeasure is raised; the tasks run all the same.
    """
    setup = await bench.setup()
    warm_up = await _submit(bench, max(1, warm_up_tasks), connections, "warm-up: submit")
    await bench.ended(warm_up.ids, "warm-up: run")
    rate = max(1.0, _per(len(warm_up.ids), warm_up.seconds))
    lead_seconds = lead_seconds or tasks / rate * LEAD_FACTOR + LEAD_SECONDS
    before = await bench.books.mark()
    due_at = round(await bench.measurements.clock_seconds() + lead_seconds, 6)
    run_at = datetime.fromtimestamp(due_at, UTC).isoformat()
    submitted = await _submit(bench, tasks, connections, "submit", run_at=run_at)
    written = await bench.books.mark()
    left_seconds = due_at - await bench.measurements.clock_seconds()
    if left_seconds <= 0:
        raise CannotMeasure(
            f"the submission took {lead_seconds - left_seconds:.1f} s, and the tasks were due after"
            f" {lead_seconds:.1f} s. {len(submitted.ids):,} tasks with the tag {bench.tag} are in the ledger,"
            " and run. Repeat it with a longer lead (--lead-seconds)."
        )
    due = written
    if left_seconds > 2 * STATISTICS_SECONDS:
        await bench.wait(left_seconds - 1.5 * STATISTICS_SECONDS, "wait until they are due")
        due = await bench.books.mark()
    await bench.ended(submitted.ids, "drain")
    after = await bench.books.mark()
    ends = await bench.ends(submitted.ids)
    finished = sorted(_finished(ends.values(), Status.COMPLETED))
    seconds = finished[-1] - due_at if finished else None
    return Drain(
        setup=setup,
        interrupted=bench.stop.is_set(),
        answers=dict(warm_up.answers + submitted.answers),
        written=len(warm_up.ids) + len(submitted.ids),
        unknown=0,
        costs=await bench.books.costs(due, after, _ended(ends.values()), bench.tag),
        timeline=timeline(at - due_at for at in finished),
        tasks=len(submitted.ids),
        statuses=_statuses(submitted.ids, ends),
        with_result=sum(end.has_result for end in ends.values()),
        seconds=_rounded(seconds),
        per_second=_rounded(len(finished) / seconds) if seconds else None,
        first_end_seconds=_rounded(finished[0] - due_at) if finished else None,
        submission_seconds=round(submitted.seconds, 3),
        submitted_per_second=_per(len(submitted.ids), submitted.seconds),
        submission_costs=await bench.books.costs(before, written, len(submitted.ids), bench.tag),
    )


async def accept(
    bench: Bench,
    seconds: float,
    *,
    connections: int = 32,
    batch: int = 1,
    warm_up_seconds: float = 2.0,
) -> Accept:
    """Post as fast as is answered, on every connection, and count what is accepted."""
    setup = await bench.setup()
    exchanges: list[Exchange] = []
    request = bench.one() if batch == 1 else bench.many(batch)
    before = await bench.books.mark()
    load = ClosedLoop(bench.target, connections, lambda exchange, _: exchanges.append(exchange))
    with _no_collections():
        async with load:
            from_at = time.perf_counter() + warm_up_seconds
            load.start(itertools.repeat(request))
            await bench.run(load, "accept", warm_up_seconds + seconds)
            load.halt()
            to_at = max(from_at, min(from_at + seconds, time.perf_counter()))
            await bench.through(load)
    after = await bench.books.mark()
    created = [each for each in exchanges if each.status == HTTPStatus.CREATED]
    measured = [each for each in created if from_at <= each.ended_at < to_at]
    accepted = len(measured) * batch
    return Accept(
        setup=setup,
        interrupted=bench.stop.is_set(),
        answers=_answers(exchanges),
        written=len(created) * batch,
        unknown=_unknown(exchanges) * batch,
        costs=await bench.books.costs(before, after, len(created) * batch, bench.tag),
        timeline=timeline(
            (each.ended_at - from_at for each in measured for _ in range(batch)),
            ((each.ended_at - from_at, each.ended_at - each.sent_at) for each in measured),
        ),
        connections=connections,
        batch=batch,
        seconds=round(to_at - from_at, 3),
        accepted=accepted,
        accepted_per_second=_per(accepted, to_at - from_at),
        latency=Latencies.of(each.ended_at - each.sent_at for each in measured),
    )


async def latency(bench: Bench, tasks: int, *, warm_up_tasks: int = 20) -> OneAtATime:
    """Post one task at a time, and wait until the answer shows it COMPLETED."""
    setup = await bench.setup()
    exchanges: list[Exchange] = []
    shown: list[str] = []
    total = warm_up_tasks + tasks

    def record(exchange: Exchange, body: bytes) -> None:
        exchanges.append(exchange)
        created = exchange.status == HTTPStatus.CREATED
        shown.append(_read_task(body).status if created else _status(exchange))
        bench.progress("latency", len(shown), total)

    before = await bench.books.mark()
    load = ClosedLoop(bench.target, 1, record)
    async with load:
        began_at = time.perf_counter()
        load.start(itertools.repeat(bench.one(f"?wait={WAIT_SECONDS}"), total))
        await bench.through(load)
    after = await bench.books.mark()
    written = sum(each.status == HTTPStatus.CREATED for each in exchanges)
    measured = [
        (each.ended_at - began_at, each.ended_at - each.sent_at)
        for each, status in list(zip(exchanges, shown, strict=True))[warm_up_tasks:]
        if status == Status.COMPLETED.name
    ]
    return OneAtATime(
        setup=setup,
        interrupted=bench.stop.is_set(),
        answers=_answers(exchanges),
        written=written,
        unknown=_unknown(exchanges),
        costs=await bench.books.costs(before, after, written, bench.tag),
        timeline=timeline((at for at, _ in measured), measured),
        statuses=dict(Counter(shown[warm_up_tasks:])),
        latency=Latencies.of(took for _, took in measured),
    )


async def mixed(
    bench: Bench,
    rate_per_second: float,
    seconds: float,
    *,
    connections: int = 128,
    warm_up_seconds: float = 5.0,
) -> Mixed:
    """Post at a steady rate, and follow each task from when its request was due to its end."""
    setup = await bench.setup()
    exchanges: list[tuple[Exchange, UUID | None]] = []

    def record(exchange: Exchange, body: bytes) -> None:
        created = exchange.status == HTTPStatus.CREATED
        exchanges.append((exchange, _read_task(body).id if created else None))

    before = await bench.books.mark()
    offset = await compare_clocks(bench.measurements)
    load = OpenLoop(bench.target, connections, record)
    total_seconds = warm_up_seconds + seconds
    with _no_collections():
        async with load:
            from_at = warm_up_seconds + load.start(
                bench.one(), rate_per_second, max(1, round(rate_per_second * total_seconds))
            )
            await bench.run(load, "load", total_seconds)
            to_at = max(from_at, min(from_at + seconds, time.perf_counter()))
            await bench.through(load)
            never_sent = sum(due_at >= from_at for due_at in load.unsent)
    ids = [task_id for _, task_id in exchanges if task_id is not None]
    await bench.ended(ids, "until all have ended")
    after = await bench.books.mark()
    offset = offset.agreed(await compare_clocks(bench.measurements))
    now = time.perf_counter()
    ends = await bench.ends(ids)
    ended_at = {task_id: _on_our_clock(ends.get(task_id), offset) for task_id in ids}
    measured = [each for each in exchanges if from_at <= each[0].due_at < to_at]
    accepted = [(each, task_id) for each, task_id in measured if task_id is not None]
    took = [(each.due_at - from_at, (ended_at[task_id] or now) - each.due_at) for each, task_id in accepted]
    completed = [at for at in map(ended_at.get, ids) if at is not None and from_at <= at < to_at]
    window_seconds = to_at - from_at
    warm_up_requests = round(warm_up_seconds * rate_per_second)
    return Mixed(
        setup=setup,
        interrupted=bench.stop.is_set(),
        answers=_answers(each for each, _ in exchanges),
        written=len(ids),
        unknown=_unknown(each for each, _ in exchanges),
        costs=await bench.books.costs(before, after, len(ids), bench.tag),
        timeline=timeline((at - from_at for at in completed), took),
        rate_per_second=rate_per_second,
        seconds=round(window_seconds, 3),
        connections=connections,
        requests=len(measured) + never_sent,
        accepted=len(accepted),
        accepted_per_second=_per(len(accepted), window_seconds),
        completed_per_second=_per(len(completed), window_seconds),
        statuses=_statuses((task_id for _, task_id in accepted), ends),
        latency=Latencies.of(latency for _, latency in took),
        accept_latency=Latencies.of(each.ended_at - each.due_at for each, _ in accepted),
        behind=Latencies.of(load.late_seconds[warm_up_requests:]),
        never_sent=never_sent,
        backlog=sum(
            each.ended_at < to_at and (ended_at[task_id] or now) > to_at
            for each, task_id in exchanges
            if task_id is not None
        ),
        clock_uncertainty_ms=round(offset.uncertainty_seconds * 1000, 3),
    )


async def _submit(bench: Bench, tasks: int, connections: int, stage: str, **fields: object) -> _Submitted:
    """Hand tasks over in batches; raises CannotMeasure where one is not taken."""
    ids: list[UUID] = []
    answers = Counter[str]()
    refusals: list[str] = []

    def record(exchange: Exchange, body: bytes) -> None:
        answers[_status(exchange)] += 1
        if exchange.status == HTTPStatus.CREATED:
            ids.extend(shown.id for shown in _read_batch(body).items)
            bench.progress(stage, len(ids), tasks)
        else:
            refusals.append(_explain(exchange, body))
            load.halt()

    batch = bench.most_in_batch
    whole, rest = divmod(0 if bench.stop.is_set() else tasks, batch)
    requests = [bench.many(batch, **fields)] * whole + ([bench.many(rest, **fields)] if rest else [])
    load = ClosedLoop(bench.target, min(connections, len(requests)), record)
    async with load:
        began_at = time.perf_counter()
        load.start(iter(requests))
        await bench.through(load)
        seconds = time.perf_counter() - began_at
    if refusals:
        raise CannotMeasure(
            f"a batch of tasks was not taken: {refusals[0]}\n"
            f"{len(ids):,} tasks with the tag {bench.tag} are in the ledger, and run."
        )
    return _Submitted(ids, seconds, answers)


def _status(exchange: Exchange) -> str:
    return UNANSWERED if exchange.status is None else str(exchange.status)


def _answers(exchanges: Iterable[Exchange]) -> dict[str, int]:
    return dict(Counter(map(_status, exchanges)))


def _unknown(exchanges: Iterable[Exchange]) -> int:
    """Count requests that may have been carried out, though no 201 came."""
    return sum(each.status is None or each.status >= HTTPStatus.INTERNAL_SERVER_ERROR for each in exchanges)


def _explain(exchange: Exchange, body: bytes) -> str:
    if exchange.status is None:
        return "the connection was lost before the answer"
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        return f"the answer is {exchange.status}"
    return f"{problem.title} ({exchange.status}): {problem.detail}"


def _ended(ends: Iterable[End]) -> int:
    return sum(end.status.terminal for end in ends)


def _finished(ends: Iterable[End], status: Status) -> Iterator[float]:
    for end in ends:
        if end.status is status and end.finished_at_seconds is not None:
            yield end.finished_at_seconds


def _on_our_clock(end: End | None, offset: Offset) -> float | None:
    if end is None or end.finished_at_seconds is None:
        return None
    return end.finished_at_seconds - offset.seconds


def _statuses(ids: Iterable[UUID], ends: Mapping[UUID, End]) -> dict[str, int]:
    return dict(Counter(ends[each].status.name if each in ends else MISSING for each in ids))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _per(number: int, seconds: float) -> float:
    return round(number / seconds, 1) if seconds > 0 else 0.0


@contextmanager
def _no_collections() -> Iterator[None]:
    """Spare a load generator pauses of the garbage collector: what it keeps is many tuples and no cycle."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
