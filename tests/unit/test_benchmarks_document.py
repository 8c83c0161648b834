"""documents/benchmarks.md says what the results hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks.costs import Cost
from benchmarks.document import BEGIN, DOCUMENT, END, figures, written
from benchmarks.limits.disk import Disk
from benchmarks.limits.empty_post import Empty
from benchmarks.limits.statements import Speed, Statements
from benchmarks.ours.accept import Accept
from benchmarks.ours.backlog import Backlog
from benchmarks.ours.drain import Drain
from benchmarks.ours.latency import Latency
from benchmarks.ours.memory import Memory, Taken
from benchmarks.ours.reads import Read, Reads
from benchmarks.ours.wire import Talk, Wire
from benchmarks.peers.measure import Found, Peers
from benchmarks.percentiles import Milliseconds
from benchmarks.rates import Rates
from benchmarks.results import FOLDER, Origin, Results, Series, keep, read
from benchmarks.spreads import Spread, number
from benchmarks.targets import targets
from benchmarks.wrk import Loop

if TYPE_CHECKING:
    from pathlib import Path

ORIGIN = Origin("abc", "2030-01-31T12:00+00:00", "2 cores", {"python": "3.11"}, {"fsync": "on"})
COST = Cost({"relay": 10.0, "worker": 30.5, "benchmark": 2.0}, 2000.0, 500.0, 0.05)
LATENCY = Milliseconds(300, 4.0, 9.0, 12.0)


def drain(per_second: float, tasks: int = 100_000) -> Drain:
    return Drain(tasks, Rates(per_second, per_second + 100, 1.0, per_second + 50), COST)


def peer(per_second: float, accepted: float | None = None) -> Found:
    return Found(5000, 900.0, 50.0, Rates(per_second, None), LATENCY, COST, accepted)


def loop(per_second: float) -> Loop:
    return Loop(8 * round(per_second), per_second, 1.0, 2.0, 16.5)


def reached(found: Results) -> dict[str, bool | None]:
    return {f"{target.what}: {target.wanted}": target.reached for target in targets(found)}


def test_without_results_nothing_is_said(tmp_path: Path) -> None:
    assert figures(read(tmp_path)) == ""


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    keep("drain", ORIGIN, [drain(5000.0), drain(6000.0)], tmp_path)
    assert read(tmp_path) == Results(drain=Series(ORIGIN, [drain(5000.0), drain(6000.0)]))


def test_a_result_of_another_form_is_refused(tmp_path: Path) -> None:
    keep("accept", ORIGIN, [drain(5000.0)], tmp_path)
    with pytest.raises(msgspec.ValidationError):
        read(tmp_path)


def test_a_figure_is_the_median_with_the_least_and_the_most() -> None:
    assert str(Spread.of([3000.0, 1000.0, 2500.0])) == "2,500 (1,000 to 3,000)"
    assert str(Spread.of([2.345])) == "2.3"
    assert [number(value) for value in (0.0525, 99.94, 100.4, 0.0, 12345.6)] == [
        "0.0525",
        "99.9",
        "100",
        "0",
        "12,346",
    ]


def test_a_drain_is_held_against_a_number_and_the_fastest_peer() -> None:
    def judged(per_second: float, fastest_peer: float) -> tuple[bool | None, str]:
        peers = Peers({"Celery": peer(400.0), "PgQueuer": peer(fastest_peer)}, {})
        found = Results(drain=Series(ORIGIN, [drain(per_second)]), peers=Series(ORIGIN, [peers]))
        [target] = targets(found)
        return target.reached, target.compared

    assert judged(21_000.0, 10_000.0) == (True, "2.10 times PgQueuer")
    assert judged(21_000.0, 11_000.0) == (False, "1.91 times PgQueuer")
    assert judged(19_999.0, 5_000.0) == (False, "4.00 times PgQueuer")


def test_a_small_run_reaches_nothing() -> None:
    peers = Series(ORIGIN, [Peers({"Celery": peer(400.0)}, {})])
    found = Results(drain=Series(ORIGIN, [drain(90_000.0, tasks=2000)]), peers=peers)
    found = msgspec.structs.replace(found, backlog=Series(ORIGIN, [Backlog(200, 20_000, 5000.0, 5000.0)]))
    assert set(reached(found).values()) == {None}


def test_the_gateway_is_held_against_an_empty_post_and_the_tutorial() -> None:
    accept = Series(ORIGIN, [Accept(9000.0, loop(9000.0), COST)])
    empty = Series(ORIGIN, [Empty(10_000.0, loop(10_000.0), COST)])
    peers = Series(ORIGIN, [Peers({"Tutorial outbox": peer(400.0, accepted=1000.0)}, {})])
    found = Results(accept=accept, empty=empty, peers=peers)
    assert list(reached(found).values()) == [True, False]
    assert [target.compared for target in targets(found)] == [
        "0.90 times an empty POST",
        "9.00 times the tutorial",
    ]
    assert list(reached(Results(accept=accept)).values()) == [None, None]


def test_batches_are_held_against_a_bare_insert() -> None:
    speed = Speed(1000, 100_000.0, msgspec.structs.replace(COST, cpu_microseconds={"postgresql": 9.0}))
    statements = Series(ORIGIN, [Statements(speed, speed, speed, speed, speed)])
    found = Results(batch=Series(ORIGIN, [Accept(49_000.0, loop(49.0), COST)]), statements=statements)
    assert list(reached(found).values()) == [False]


def test_a_failed_read_reaches_nothing_however_fast() -> None:
    question = Read("kind, none", 0, False, 0, LATENCY)  # noqa: FBT003 - as the struct has it
    good = Reads(10_000_000, 5, [question], [question])
    bad = Reads(10_000_000, 5, [msgspec.structs.replace(question, failed=1)], [question])
    assert list(reached(Results(reads=Series(ORIGIN, [good]))).values()) == [True, True]
    assert list(reached(Results(reads=Series(ORIGIN, [bad]))).values()) == [False, True]


def test_memory_must_be_flat() -> None:
    servers = {"postgresql": Taken(900.0, 900.0, 900.0)}
    flat = Memory(1_000_000, {"worker": Taken(50.0, 60.0, 70.0), **servers})
    grown = Memory(1_000_000, {"worker": Taken(50.0, 80.0, 80.0), **servers})
    assert list(reached(Results(memory=Series(ORIGIN, [flat]))).values()) == [True]
    assert list(reached(Results(memory=Series(ORIGIN, [grown]))).values()) == [False]


def test_the_tables_name_what_was_found() -> None:
    peers = Peers({"Celery": peer(400.0)}, {"Taskiq": "TimeoutError: too late"})
    found = Results(drain=Series(ORIGIN, [drain(5000.0), drain(7000.0)]), peers=Series(ORIGIN, [peers]))
    said = figures(found)
    assert "| drain | 2 | abc | 2030-01-31 12:00 |" in said
    assert "| 6,000 (5,000 to 7,000) | 15.00 times Celery |" in said
    assert "| drain | relay 10.0, worker 30.5 | 40.5 | 2.0 | 2,000 | 500 | 0.05 |  |  |" in said
    assert "| Celery | 5,000 | 900 | 400 |  | 4.0 | 9.0 |  |" in said
    assert "Taskiq failed in a round: TimeoutError: too late" in said


def test_what_a_tap_counted_stands_beside_the_costs() -> None:
    talks = [Talk(float(number), number / 10) for number in range(1, 6)]
    found = Results(drain=Series(ORIGIN, [drain(5000.0)]), wire=Series(ORIGIN, [Wire(*talks)]))
    found = msgspec.structs.replace(found, latency=Series(ORIGIN, [Latency(LATENCY, COST)]))
    costs = "relay 10.0, worker 30.5 | 40.5 | 2.0 | 2,000 | 500 | 0.05"
    assert f"| drain | {costs} | 1.0 | 0.1 |" in figures(found)
    assert f"| alone, from POST to COMPLETED | {costs} | 5.0 | 0.5 |" in figures(found)


def test_of_the_disk_the_longest_wait_is_told() -> None:
    rounds = [Disk(16_384, Milliseconds(8000, 0.2, 0.5, most)) for most in (150.0, 1100.0)]
    said = figures(Results(disk=Series(ORIGIN, rounds)))
    assert "to write 16,384 bytes" in said
    assert "once in 20 seconds 625 (150 to 1,100) ms" in said


def test_every_machine_is_named_once_the_latest_last() -> None:
    later = msgspec.structs.replace(ORIGIN, machine="4 cores", at="2030-02-01T12:00+00:00")
    found = Results(
        drain=Series(later, [drain(5000.0)]),
        shipped=Series(ORIGIN, [drain(5000.0)]),
        disk=Series(ORIGIN, [Disk(16_384, Milliseconds(8000, 0.2, 0.5, 150.0))]),
    )
    assert figures(found).startswith("Machine: 2 cores; 4 cores. python 3.11.")


def test_what_stands_around_the_figures_is_left() -> None:
    text = written(f"before\n{BEGIN}\nold\n{END}\nafter\n", Results(drain=Series(ORIGIN, [drain(5000.0)])))
    assert text.startswith(f"before\n{BEGIN}\n\nMachine: 2 cores.")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text


def test_the_document_tells_the_results_that_are_kept() -> None:
    document = DOCUMENT.read_text()
    assert written(document, read(FOLDER)) == document
