"""What the figures are held against: the targets, the limits of the machine and the peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmarks.peers.catalogue import PEERS
from benchmarks.spreads import Spread, number, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.ours.memory import Taken
    from benchmarks.ours.reads import Read
    from benchmarks.peers.measure import Found as Peer
    from benchmarks.results import Results


class Target(NamedTuple):
    """A line of the table; `reached` is None where too little was measured to tell."""

    what: str
    measured: Spread
    wanted: str
    reached: bool | None
    compared: str = ""


def targets(found: Results) -> Iterator[Target]:
    """List the targets for which something was measured."""
    yield from _drain(found)
    yield from _shipped(found)
    yield from _accept(found)
    yield from _latency(found)
    yield from _sustained(found)
    yield from _priority(found)
    yield from _backlog(found)
    yield from _reads(found)
    yield from _slow(found)
    yield from _embedded(found)
    yield from _memory(found)
    yield from _wal(found)


def rounds_by_peer(found: Results) -> dict[str, list[Peer]]:
    """Sort what was found by peers, those left out that were never measured."""
    rounds = found.peers.rounds if found.peers else []
    by_peer = {
        peer.name: [each.found[peer.name] for each in rounds if peer.name in each.found] for peer in PEERS
    }
    return {name: each for name, each in by_peer.items() if each}


def _drain(found: Results) -> Iterator[Target]:
    if found.drain is None:
        return
    tasks = found.drain.rounds[0].tasks
    rate = spread(found.drain, lambda each: each.rates.per_second)
    peers = {
        name: Spread.of(each.rates.per_second for each in rounds).median
        for name, rounds in rounds_by_peer(found).items()
    }
    fastest = max(peers, key=lambda name: peers[name], default=None)
    reached = rate.median >= 20_000 and rate.median >= 2 * max(peers.values(), default=0)
    yield Target(
        f"drain of {tasks:,} tasks, per second from the spawn of the processes",
        rate,
        "20,000 and 2 times the fastest peer",
        reached if fastest and tasks >= 100_000 else None,
        compared=f"{rate.median / peers[fastest]:.2f} times {fastest}" if fastest else "",
    )


def _shipped(found: Results) -> Iterator[Target]:
    if found.shipped:
        what = "the same with WORKER_CONCURRENCY=64, as shipped"
        yield Target(what, spread(found.shipped, lambda each: each.rates.per_second), "", None)


def _accept(found: Results) -> Iterator[Target]:
    if found.accept:
        what = "POST /tasks over 32 connections, per second"
        rate = spread(found.accept, lambda each: each.per_second)
        empty = spread(found.empty, lambda each: each.per_second).median if found.empty else None
        yield _share(what, rate, 0.85, empty, "an empty POST")
        accepted = [
            each.accepted_per_second
            for rounds in rounds_by_peer(found).values()
            for each in rounds
            if each.accepted_per_second is not None
        ]
        yield _share(what, rate, 10, Spread.of(accepted).median if accepted else None, "the tutorial")
    if found.batch:
        rate = spread(found.batch, lambda each: each.per_second)
        bare = (
            spread(found.statements, lambda each: each.bare.per_second).median if found.statements else None
        )
        yield _share("tasks by POST /tasks/batch of 1,000, per second", rate, 0.5, bare, "a bare insert")


def _share(what: str, rate: Spread, share: float, limit: float | None, name: str) -> Target:
    wanted = f"{share:g} times {name}"
    if limit is None:
        return Target(what, rate, wanted, None)
    return Target(what, rate, wanted, rate.median >= share * limit, f"{rate.median / limit:.2f} times {name}")


def _latency(found: Results) -> Iterator[Target]:
    if found.latency:
        what = "POST until the client sees COMPLETED, idle, ms"
        p50 = spread(found.latency, lambda each: each.seen.p50)
        yield Target(f"{what}, p50", p50, "at most 5", p50.median <= 5)
        p99 = spread(found.latency, lambda each: each.seen.p99)
        yield Target(f"{what}, p99", p99, "at most 10", p99.median <= 10)


def _sustained(found: Results) -> Iterator[Target]:
    if found.sustained:
        one = found.sustained.rounds[0]
        p99 = spread(found.sustained, lambda each: each.finished.p99)
        yield Target(
            f"POST until recorded, open loop, {one.per_second:,.0f} a second for {one.seconds:g} s, p99, ms",
            p99,
            "below 250 at 5,000 a second for 180 s",
            p99.median < 250 if one.per_second >= 5000 and one.seconds >= 180 else None,
        )


def _priority(found: Results) -> Iterator[Target]:
    if found.priority:
        low = found.priority.rounds[0].low_tasks
        p99 = spread(found.priority, lambda each: each.started.p99)
        yield Target(
            f"POST of a HIGH task until it starts, behind {low:,} LOW ones, p99, ms",
            p99,
            "below 100 behind 500,000",
            p99.median < 100 if low >= 500_000 else None,
        )


def _backlog(found: Results) -> Iterator[Target]:
    if found.backlog:
        one = found.backlog.rounds[0]
        share = spread(found.backlog, lambda each: each.per_second_with_many / each.per_second_with_few)
        yield Target(
            f"drain rate with {one.many:,} tasks waiting, divided by that with {one.few:,}",
            share,
            "at least 0.9 with 1,000,000",
            share.median >= 0.9 if one.many >= 1_000_000 else None,
        )


def _reads(found: Results) -> Iterator[Target]:
    if found.reads:
        rows = found.reads.rounds[0].rows
        enough = rows >= 10_000_000
        p99 = spread(found.reads, lambda each: _slowest(each.promised))
        good = not any(read.failed for each in found.reads.rounds for read in each.promised)
        what = f"among {rows:,} tasks, while others are drained, the slowest question's p99, ms"
        yield Target(
            f"by id, no filter, one filter: {what}",
            p99,
            "below 10 among 10,000,000",
            good and p99.median < 10 if enough else None,
        )
        p99 = spread(found.reads, lambda each: _slowest(each.others))
        good = not any(read.failed for each in found.reads.rounds for read in each.others)
        yield Target(
            f"other combinations: {what}",
            p99,
            "below 100 among 10,000,000",
            good and p99.median < 100 if enough else None,
        )


def _slowest(reads: list[Read]) -> float:
    return max(read.took.p99 for read in reads)


def _slow(found: Results) -> Iterator[Target]:
    if found.slow:
        share = spread(
            found.slow, lambda each: (each.drain.rates.per_second_once_up or 0) / each.most_per_second
        )
        yield Target(
            "handlers of 50 ms in 500 slots, per second, divided by what the slots could run",
            share,
            "at least 0.9",
            share.median >= 0.9,
        )


def _embedded(found: Results) -> Iterator[Target]:
    if found.embedded:
        tasks = found.embedded.rounds[0].tasks
        rate = spread(found.embedded, lambda each: each.rates.per_second)
        yield Target(
            f"the embedded default: drain of {tasks:,} tasks, per second from the spawn of the process",
            rate,
            "4,000",
            rate.median >= 4000,
        )


def _memory(found: Results) -> Iterator[Target]:
    if found.memory:
        tasks = found.memory.rounds[0].tasks
        most = spread(found.memory, lambda each: max(taken.most_mib for taken in _own(each.taken).values()))
        yield Target(
            f"memory of our largest process, {tasks:,} tasks through all, MiB",
            most,
            "below 120, and flat, through 1,000,000",
            most.median < 120 and _flat(found) if tasks >= 1_000_000 else None,
        )


def _own(taken: Mapping[str, Taken]) -> dict[str, Taken]:
    return {name: each for name, each in taken.items() if name not in ("postgresql", "rabbitmq")}


def _flat(found: Results) -> bool:
    """Tell whether no process of ours has grown by more than a tenth and what an allocator keeps."""
    rounds = found.memory.rounds if found.memory else []
    taken = [each for one in rounds for each in _own(one.taken).values()]
    return all(each.afterwards_mib <= 1.1 * each.at_rest_mib + 16 for each in taken)


def _wal(found: Results) -> Iterator[Target]:
    if found.accept and found.drain:
        accept = spread(found.accept, lambda each: each.cost.wal_bytes)
        drain = spread(found.drain, lambda each: each.cost.wal_bytes)
        both = Spread(*(a + b for a, b in zip(accept, drain, strict=True)))
        yield Target(
            "WAL bytes of a task, accepted and drained at saturation, full-page images apart",
            both,
            f"at most {number(3072)}",
            both.median <= 3072,
        )
