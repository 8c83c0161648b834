"""How the benchmarks read what programs print, and what they ask of them."""

from __future__ import annotations

import argparse
import re
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from benchmarks import wrk
from benchmarks.__main__ import ALL, names_of
from benchmarks.calls import Answer, check
from benchmarks.costs import Log, read_statistics
from benchmarks.limits import pgbench, statements
from benchmarks.limits.amqp import Confirms
from benchmarks.limits.pgbench import Statement, literal, script
from benchmarks.limits.statements import KINDS, LEASE_SECONDS, WORKER, Caught, Ledger, statement
from benchmarks.observer import NotAsPromised
from benchmarks.peers.catalogue import PEERS, versions
from benchmarks.peers.measure import url_of
from benchmarks.percentiles import Milliseconds
from benchmarks.programs import ROOT
from benchmarks.rates import Rates
from benchmarks.results import Results
from benchmarks.tap import Amqp, Sql, Tap
from benchmarks.workload import PAYLOAD, body_of, body_of_batch, submissions
from gateway.ids import Ids
from gateway.payloads import NEW_BATCH, NEW_TASK
from storage.model import Done, Reference
from tests.support.markdown import between, paragraph, table
from tests.support.servers import Database

if TYPE_CHECKING:
    from collections.abc import Coroutine

WALDUMP = """\
WAL statistics between 0/1A2B3C4 and 0/2A2B3C4:
Type                                           N      (%)          Record size      (%)             FPI size
----                                           -      ---          -----------      ---             --------
Transaction/COMMIT                            12 (  2.00)                  408 (  1.36)                    0
Transaction/ABORT                              3 (  0.50)                  102 (  0.34)                    0
Heap/INSERT                                  585 ( 97.50)                29490 ( 98.30)                 8192
                                        --------                      --------                      --------
Total                                        600                       30000 [78.55%]           8192 [21.45%]
"""

PGBENCH = """\
number of transactions actually processed: 20/20
number of failed transactions: 0 (0.000%)
statement latencies in milliseconds and failures:
         0.001           0 \\set n :n + :clients
         1.500           0 SELECT parameters[1] AS p0_1 FROM calls
        12.250           0 WITH given AS (
         0.900           0 SELECT parameters[1] AS p1_1 FROM calls
         7.500           0 WITH locked AS (
"""

WRK = """\
Running 8s test @ http://127.0.0.1:1/
  1 threads and 32 connections

{"requests":4000,"seconds":8.0,"failed":0,"p50_milliseconds":1.5,"p99_milliseconds":9.25}
"""


def test_of_the_log_records_images_and_commits_are_read_apart() -> None:
    assert read_statistics(WALDUMP) == Log(30_000, 8_192, 12)


def test_a_log_that_cannot_be_read_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="no total"):
        read_statistics("pg_waldump: error: nothing there")


def test_of_pgbench_only_the_statements_count() -> None:
    assert pgbench.latencies(PGBENCH) == [12.25, 7.5]


def test_a_failed_transaction_is_no_measurement() -> None:
    with pytest.raises(NotAsPromised):
        pgbench.latencies(PGBENCH.replace("transactions: 0 ", "transactions: 2 "))


def test_a_script_takes_the_next_parameters_of_each_statement() -> None:
    text = script([Statement("SELECT $1::int, $2::text, $1", [[1, "a"]]), Statement("SELECT $1", [[2]])])
    assert text.splitlines() == [
        r"\set n :n + :clients",
        "SELECT parameters[1] AS p0_1, parameters[2] AS p0_2 FROM calls",
        r"WHERE statement = 0 AND n = :n::int + :client_id::int \gset",
        "SELECT :p0_1::int, :p0_2::text, :p0_1;",
        "SELECT parameters[1] AS p1_1 FROM calls",
        r"WHERE statement = 1 AND n = :n::int + :client_id::int \gset",
        "SELECT :p1_1;",
    ]


def test_a_script_has_no_variable_but_its_own() -> None:
    sql = "SELECT to_char($1::timestamptz, 'HH24:MI:SS')::text"
    last = script([Statement(sql, [["now"]])]).splitlines()[-1]
    assert last == "SELECT to_char(:p0_1::timestamptz, 'HH24'||chr(58)||'MI'||chr(58)||'SS')::text;"


def test_parameters_are_written_as_postgresql_reads_them() -> None:
    at = datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert literal(["a", None, 'say "hi" \\ now']) == '{"a",NULL,"say \\"hi\\" \\\\ now"}'
    assert literal([UUID(int=1)]) == '{"00000000-0000-0000-0000-000000000001"}'
    assert literal((1, 0.5)) == '{"1","0.5"}'
    assert literal(at) == "2030-01-31T12:00:00+00:00"
    assert literal([]) == "{}"


@pytest.mark.parametrize("name", ["submit", "poll", "settle", "claim", "record"])
async def test_a_statement_is_the_one_that_is_shipped_with_all_it_asks_for(name: str) -> None:
    ledger, reference = Ledger(), Reference(UUID(int=7), 1)
    done = Done(statements._run(reference), "{}")
    calls: dict[str, Coroutine[object, object, object]] = {
        "submit": ledger.submissions.submit(submissions(2, Ids())),
        "poll": ledger.outbox.poll(500, LEASE_SECONDS),
        "settle": ledger.outbox.settle([(1, 0.0)]),
        "claim": ledger.runs.claim([reference], WORKER, KINDS),
        "record": ledger.runs.record([done]),
    }
    caught = await statement([calls.pop(name)])
    for unused in calls.values():
        unused.close()
    asked = {int(number) for number in re.findall(r"\$(\d+)", caught.sql)}
    assert asked == set(range(1, len(caught.calls[0]) + 1))
    assert re.search(r"\b(tasks|outbox)\b", caught.sql)


async def test_a_statement_is_caught_before_anything_is_sent() -> None:
    with pytest.raises(Caught):
        await Ledger().outbox.poll(1, LEASE_SECONDS)


def test_confirms_come_in_any_order() -> None:
    confirms = Confirms()
    confirms.add(3, multiple=False)
    confirms.add(1, multiple=False)
    assert confirms.count == 2
    confirms.add(2, multiple=True)
    assert confirms.count == 3
    confirms.add(5, multiple=False)
    confirms.add(5, multiple=True)
    assert confirms.count == 5


def cut(data: bytes, longest: int) -> list[bytes]:
    return [data[at : at + longest] for at in range(0, len(data), longest)]


@pytest.mark.parametrize("longest", [1, 3, 10_000])
def test_a_tap_counts_answers_and_frames_of_both_sides(longest: int) -> None:
    tap = Tap()
    sql, amqp = Sql(tap), Amqp(tap)
    row, ready = b"D" + struct.pack(">I", 4 + 500) + bytes(500), b"Z" + struct.pack(">I", 5) + b"I"
    for chunk in cut(row + ready + row + row + ready, longest):
        sql.received(chunk)
    frames = [
        struct.pack(">BHI", kind, 1, size) + bytes(size) + b"\xce"
        for kind, size in ((1, 4), (3, 700), (8, 0))
    ]
    for chunk in cut(b"AMQP\0\0\x09\x01" + b"".join(frames), longest):
        amqp.sent(chunk)
    for chunk in cut(frames[0] + frames[1], longest):
        amqp.received(chunk)
    assert (tap.sql_round_trips, tap.amqp_frames) == (2, 5)
    tap.restart()
    assert (tap.sql_round_trips, tap.amqp_frames) == (0, 0)


def test_what_wrk_found_is_its_last_line() -> None:
    loop = wrk.read(WRK, cpu_seconds=0.08)
    assert (loop.requests, loop.per_second, loop.p99_milliseconds) == (4000, 500.0, 9.25)
    assert loop.generator_cpu_microseconds == 20.0


def test_one_failed_request_spoils_a_loop() -> None:
    with pytest.raises(NotAsPromised, match="1 of 4000"):
        wrk.read(WRK.replace('"failed":0', '"failed":1'), cpu_seconds=0.08)


def test_calls_count_when_all_are_answered_as_they_should_be() -> None:
    good = Answer(0.0, 0.0, 1.0, 201, b"")
    check([good, good], 2, 201)
    for answers in ([good], [good, good._replace(status=503)], [good, good._replace(status=None)]):
        with pytest.raises(NotAsPromised):
            check(answers, 2, 201)


def test_percentiles_are_durations_that_were_seen() -> None:
    summed_up = Milliseconds.of([0.1, *[0.001] * 98, 0.05])
    assert (summed_up.times, summed_up.p50, summed_up.p99, summed_up.most) == (100, 1.0, 50.0, 100.0)
    with pytest.raises(ValueError, match="no durations"):
        Milliseconds.of([])


def test_a_rate_counts_from_three_points() -> None:
    spawned = datetime(2030, 1, 31, tzinfo=UTC)
    up, first, last = (spawned + timedelta(seconds=seconds) for seconds in (1, 2, 11))
    rates = Rates.of(1000, spawned, first, last, up)
    assert (rates.per_second, rates.per_second_once_up, rates.boot_seconds) == (90.9, 100.0, 1.0)
    assert rates.per_second_from_first == 111.0
    assert Rates.of(10, spawned, last, last).per_second_from_first is None


def test_the_bodies_are_what_the_gateway_takes() -> None:
    assert NEW_TASK.decode(body_of()).kind == "echo"
    assert len(NEW_BATCH.split(body_of_batch(3)).tasks) == 3


def test_ours_and_theirs_get_the_same_payload() -> None:
    client = (ROOT / "benchmarks" / "peers" / "apps" / "client.py").read_text()
    [written] = re.findall(r"^PAYLOAD = (.*)$", client, re.MULTILINE)
    assert eval(written) == PAYLOAD  # noqa: S307 - a line of this repository


def test_what_is_measured_can_be_kept() -> None:
    assert set(ALL) == set(Results.__struct_fields__)


def test_an_unknown_measurement_is_refused_with_those_that_there_are() -> None:
    assert names_of("drain,peers") == ["drain", "peers"]
    with pytest.raises(argparse.ArgumentTypeError, match="speed: allowed: drain, shipped"):
        names_of("drain,speed")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_has_its_app_and_pinned_versions(peer: object) -> None:
    apps = ROOT / "benchmarks" / "peers" / "apps"
    assert all((apps / f"{each.app}_app.py").exists() for each in PEERS if each is peer)
    assert {"celery", "dramatiq", "taskiq", "procrastinate", "pgqueuer", "fastapi"} <= versions().keys()


def test_every_requirement_of_the_peers_is_pinned() -> None:
    lines = (ROOT / "benchmarks" / "peers" / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not re.match(r"[\w.-]+(\[[\w,]+\])?==[\w.]+( ;|$)", line)] == []


def test_a_peer_finds_the_database_by_its_socket() -> None:
    database = Database("/tmp/a b", 5432, "baton", "", "test_1")  # noqa: S108 - only named
    assert url_of(database) == "postgresql://baton@/test_1?host=%2Ftmp%2Fa%20b&port=5432"


def test_text_goes_between_its_marks() -> None:
    assert between("a <b> old <e> z", "<b>", "<e>", "new") == "a <b>\n\nnew\n<e> z"
    with pytest.raises(ValueError, match="lacks"):
        between("a <e> <b>", "<b>", "<e>", "new")
    assert paragraph("some words") == "some words\n"
    assert table(("a", "b"), [(1, 2)]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"
