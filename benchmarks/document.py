"""`python -m benchmarks.document`: writes what benchmarks/results hold into documents/benchmarks.md."""

from __future__ import annotations

import sys
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from benchmarks.costs import OWN
from benchmarks.limits import disk
from benchmarks.peers.catalogue import PEERS, versions
from benchmarks.programs import ROOT
from benchmarks.results import read
from benchmarks.spreads import Spread, number, spread
from benchmarks.targets import rounds_by_peer, targets
from benchmarks.workload import BATCH
from tests.support.markdown import between, paragraph, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.costs import Cost
    from benchmarks.ours.wire import Talk
    from benchmarks.peers.measure import Found as Peer
    from benchmarks.results import Results, Series

Found = TypeVar("Found")

DOCUMENT = ROOT / "documents" / "benchmarks.md"
BEGIN = "<!-- figures: made by `python -m benchmarks.document`, not by hand -->"
END = "<!-- end of figures -->"


def figures(found: Results) -> str:
    """Write all tables for which there are results."""
    parts = (_origins, _targets, _ledger, _limits, _peers, _long)
    return "\n".join(text for part in parts for text in part(found))


def _origins(found: Results) -> Iterator[str]:
    series = _measured(found)
    if not series:
        return
    origins = sorted((each.origin for each in series.values()), key=lambda origin: origin.at)
    machines, last = "; ".join(dict.fromkeys(origin.machine for origin in origins)), origins[-1]
    libraries = ", ".join(f"{name} {release}" for name, release in last.versions.items())
    settings = ", ".join(f"{name} = {value}" for name, value in last.postgresql.items())
    yield paragraph(f"Machine: {machines}. {libraries}. PostgreSQL settings: {settings}.")
    yield table(
        ("measured", "rounds", "commit", "when (UTC)"),
        ((", ".join(names), *run) for run, names in _by_run(series).items()),
    )
    yield paragraph(
        "A figure is the median of all rounds; where rounds differ, the least and the most follow."
    )


def _measured(found: Results) -> dict[str, Series[Any]]:
    each = {name: getattr(found, name) for name in found.__struct_fields__}
    return {name: series for name, series in each.items() if series is not None}


def _by_run(series: Mapping[str, Series[Any]]) -> dict[tuple[int, str, str], list[str]]:
    """Group what was measured together; one that was cut short has some with fewer rounds."""
    groups: dict[tuple[int, str, str], list[str]] = {}
    for name, each in series.items():
        at = each.origin.at.partition("+")[0].replace("T", " ")
        groups.setdefault((len(each.rounds), each.origin.commit, at), []).append(name)
    return groups


def _targets(found: Results) -> Iterator[str]:
    lines = list(targets(found))
    if not lines:
        return
    reached = {True: "yes", False: "no", None: ""}
    yield "## Against the targets\n"
    yield table(
        ("what", "measured", "compared", "target", "reached"),
        ((line.what, line.measured, line.compared, line.wanted, reached[line.reached]) for line in lines),
    )


def _ledger(found: Results) -> Iterator[str]:
    lines = [line for line in _ledger_lines(found) if line.costs]
    if not lines:
        return
    yield "## The ledger: what one task costs\n"
    yield paragraph(
        "Processor time in microseconds, of each process with its children, by the kernel's books; WAL as"
        " `pg_waldump` reads it; commits that write. What generates the load, or looks whether all is done,"
        " stands apart: it takes from the same cores. Round trips of SQL and frames of AMQP, both ways, are"
        " counted in runs of their own, by a tap between the service and its servers."
    )
    yield table(
        (
            *("task", "processor time, µs", "in all", "load generator"),
            *("WAL bytes", "full-page images, bytes", "commits", "SQL round trips", "AMQP frames"),
        ),
        ((line.name, *_cost(line), *_talk(line)) for line in lines),
    )


class Line(NamedTuple):
    """What tasks cost in each round, and what it cost to generate them; `talks` were counted by a tap."""

    name: str
    costs: Sequence[Cost]
    generator: Sequence[float] = ()
    talks: Sequence[Talk] = ()


def _ledger_lines(found: Results) -> Iterator[Line]:
    def talks(name: str) -> Sequence[Talk]:
        return [getattr(each, name) for each in _rounds(found.wire)]

    accept, batch, empty = _rounds(found.accept), _rounds(found.batch), _rounds(found.empty)
    wrk = [each.loop.generator_cpu_microseconds for each in accept]
    wrk_by_batches = [each.loop.generator_cpu_microseconds / BATCH for each in batch]
    wrk_empty = [each.loop.generator_cpu_microseconds for each in empty]
    yield Line("drain", [each.cost for each in _rounds(found.drain)], talks=talks("drain"))
    shipped, latency = _rounds(found.shipped), _rounds(found.latency)
    yield Line("drain with 64 slots, as shipped", [each.cost for each in shipped], talks=talks("shipped"))
    yield Line("accept, one by one", [each.cost for each in accept], wrk, talks("accept"))
    yield Line("accept, by batches", [each.cost for each in batch], wrk_by_batches, talks("batch"))
    yield Line("alone, from POST to COMPLETED", [each.cost for each in latency], talks=talks("latency"))
    yield Line("sustained", [each.cost for each in _rounds(found.sustained)])
    yield Line("an empty POST", [each.cost for each in empty], wrk_empty)
    for name, rounds in rounds_by_peer(found).items():
        yield Line(f"drain by {name}", [each.cost for each in rounds])


def _rounds(series: Series[Found] | None) -> Sequence[Found]:
    return series.rounds if series else ()


def _cost(line: Line) -> tuple[str, ...]:
    names = [name for name in line.costs[0].cpu_microseconds if name != OWN]
    cpu = {name: median(each.cpu_microseconds[name] for each in line.costs) for name in names}
    return (
        ", ".join(f"{name} {number(each)}" for name, each in cpu.items() if each),
        number(sum(cpu.values())),
        number(median(line.generator or [each.cpu_microseconds[OWN] for each in line.costs])),
        *(
            number(median(getattr(each, name) for each in line.costs))
            for name in ("wal_bytes", "full_page_image_bytes", "commits")
        ),
    )


def _talk(line: Line) -> tuple[str, ...]:
    names = ("sql_round_trips", "amqp_frames")
    return tuple(
        number(median(getattr(each, name) for each in line.talks)) if line.talks else "" for name in names
    )


def _limits(found: Results) -> Iterator[str]:
    rows = list(_limit_rows(found))
    if not rows and found.disk is None:
        return
    yield "## The limits of this machine\n"
    if rows:
        yield table(("what", "per second", "processor time of the server, µs each"), rows)
    if found.disk is not None:
        taken = [each.durable for each in found.disk.rounds]
        yield paragraph(
            f"With nothing else under way, to write {found.disk.rounds[0].write_bytes:,} bytes and make them"
            f" durable took {number(median(each.p50 for each in taken))} ms, in the worst hundredth more than"
            f" {number(median(each.p99 for each in taken))} ms, and once in {disk.SECONDS:.0f} seconds"
            f" {Spread.of(each.most for each in taken)} ms. Every commit behind it waits."
        )


def _limit_rows(found: Results) -> Iterator[tuple[object, ...]]:
    if found.statements is not None:
        for name, meaning in STEPS.items():
            speeds = [getattr(each, name) for each in found.statements.rounds]
            cpu = median(each.cost.cpu_microseconds["postgresql"] for each in speeds)
            yield (
                f"pgbench: {meaning}, {speeds[0].rows:,} rows a call",
                Spread.of(each.per_second for each in speeds),
                number(cpu),
            )
    if found.amqp is not None:
        for size in ("single", "packed"):
            carried = [getattr(each, size) for each in found.amqp.rounds]
            for name, meaning in (
                ("publish", "published and confirmed"),
                ("consume", "delivered and acknowledged"),
            ):
                speeds = [getattr(each, name) for each in carried]
                cpu = median(each.cost.cpu_microseconds["rabbitmq"] for each in speeds)
                yield (
                    f"raw AMQP: messages, references in each: {carried[0].references}, {meaning}",
                    Spread.of(each.per_second for each in speeds),
                    number(cpu),
                )
    if found.empty is not None:
        cpu = median(each.cost.cpu_microseconds["gateway"] for each in found.empty.rounds)
        yield "Litestar: an empty POST", spread(found.empty, lambda each: each.per_second), number(cpu)


STEPS = {
    "bare": "the rows of a task by a plain INSERT of arrays",
    "submit": "the statement of the gateway",
    "relay": "poll and settle",
    "claim": "claim",
    "record": "verdict",
}


def _peers(found: Results) -> Iterator[str]:
    measured = rounds_by_peer(found)
    if not measured:
        return
    yield "## The peers\n"
    yield table(
        (
            *("peer", "tasks", "enqueued per second", "drained per second", "from first to last"),
            *("alone, p50 ms", "p99 ms", "POST per second"),
        ),
        ((name, *_peer(rounds)) for name, rounds in measured.items()),
    )
    pinned = versions()
    for peer in PEERS:
        number = pinned.get(peer.name.lower(), "")
        yield paragraph(
            f"**{peer.name}{f' {number}' if number else ''}** — {peer.settings}. What it lacks that we do:"
            f" {peer.lacks}. The other way round: {peer.adds}."
        )
    failures = {name: words for each in _rounds(found.peers) for name, words in each.failed.items()}
    for name, words in failures.items():
        yield paragraph(f"{name} failed in a round: {words}")


def _peer(rounds: Sequence[Peer]) -> tuple[object, ...]:
    first_to_last = [each.rates.per_second_from_first for each in rounds]
    accepted = [each.accepted_per_second for each in rounds if each.accepted_per_second is not None]
    return (
        f"{rounds[0].tasks:,}",
        Spread.of(each.enqueued_per_second for each in rounds),
        Spread.of(each.rates.per_second for each in rounds),
        Spread.of(each for each in first_to_last if each is not None) if any(first_to_last) else "",
        Spread.of(each.latency.p50 for each in rounds),
        Spread.of(each.latency.p99 for each in rounds),
        Spread.of(accepted) if accepted else "",
    )


def _long(found: Results) -> Iterator[str]:
    if found.reads is not None:
        yield f"## Reads at {found.reads.rounds[0].rows:,} tasks, while others are drained\n"
        yield table(
            ("question", "found", "names another page", "p50 ms", "p99 ms", "failed"), _reads(found.reads)
        )
    if found.memory is not None:
        yield f"## Memory through {found.memory.rounds[0].tasks:,} tasks, MiB\n"
        yield table(("process", "at rest", "most", "afterwards"), _memory(found.memory))


def _reads(series: Series[Any]) -> Iterator[tuple[object, ...]]:
    for group in ("promised", "others"):
        for asked in zip(*(getattr(each, group) for each in series.rounds), strict=True):
            yield (
                asked[0].question,
                asked[0].items,
                "yes" if any(each.more for each in asked) else "",
                Spread.of(each.took.p50 for each in asked),
                Spread.of(each.took.p99 for each in asked),
                sum(each.failed for each in asked) or "",
            )


def _memory(series: Series[Any]) -> Iterator[tuple[object, ...]]:
    for name in series.rounds[0].taken:
        taken = [each.taken[name] for each in series.rounds]
        yield (
            name,
            *(
                Spread.of(getattr(each, column) for each in taken)
                for column in ("at_rest_mib", "most_mib", "afterwards_mib")
            ),
        )


def written(document: str, found: Results) -> str:
    """Put the figures between their marks."""
    return between(document, BEGIN, END, figures(found))


def main() -> int:
    """Write the document anew."""
    DOCUMENT.write_text(written(DOCUMENT.read_text(), read()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
