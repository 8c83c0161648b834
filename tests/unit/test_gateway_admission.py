"""Who is taken while tasks wait, and what the others are told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import structlog

from gateway.admission import Admission
from pipeline.monitoring import Metrics
from pipeline.testing import ManualClock, MemoryLedger
from storage.errors import Unavailable
from storage.model import Priority
from tests.support.builders import submission
from tests.support.gateway import TASKS, Gateway, gateway, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from storage.model import Accepted, KeyReused, Submission

HIGH, MEDIUM, LOW = Priority


class Counted:
    """Submissions whose number the test says; counting takes `seconds`, and waits until it is `open`."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.number = 0
        self.seconds = 0.0
        self.counts = 0
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def waiting(self, most: int) -> int:
        self.counts += 1
        await self.open.wait()
        await self.clock.advance(self.seconds)
        if self.error:
            raise self.error
        return min(self.number, most)

    async def submit(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused]:
        raise NotImplementedError

    async def repeated(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused | None]:
        raise NotImplementedError


class Rule:
    """An admission with a limit of 100, on a clock and a number that the test moves."""

    def __init__(self, limit: int = 100) -> None:
        self.clock = ManualClock()
        self.ledger = Counted(self.clock)
        self.metrics = Metrics()
        self.admission = Admission(self.ledger, limit, self.clock, self.metrics)

    async def counts(self, number: int) -> None:
        """Let the next count find so many."""
        self.ledger.number = number
        await self.clock.advance(10.0)
        counting = self.admission._count_if_due()
        assert counting
        await counting

    async def admits(self, *priorities: Priority) -> bool:
        return await self.admission.admits([submission(priority=each) for each in priorities])

    async def taken(self) -> list[Priority]:
        return [each for each in Priority if await self.admits(each)]

    def refuse(self, *priorities: Priority) -> Any:
        return self.admission.refuse([submission(priority=each) for each in priorities])


@pytest.fixture
def rule() -> Rule:
    return Rule()


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [(0, [1, 2, 3]), (47, [1, 2, 3]), (48, [1, 2]), (73, [1, 2]), (74, [1]), (99, [1]), (100, []), (500, [])],
)
async def test_low_is_refused_first_and_high_last(rule: Rule, waiting: int, taken: list[int]) -> None:
    await rule.counts(waiting)

    assert await rule.taken() == taken  # each of them waits when the next one is asked for


async def test_without_a_limit_all_are_taken_and_nothing_is_counted() -> None:
    rule = Rule(limit=0)
    rule.ledger.number = 10**9

    assert await rule.taken() == [HIGH, MEDIUM, LOW]
    assert rule.ledger.counts == 0


async def test_a_batch_is_taken_by_its_lowest_priority(rule: Rule) -> None:
    await rule.counts(60)

    assert await rule.admits(HIGH, MEDIUM)
    assert not await rule.admits(HIGH, LOW, HIGH)


async def test_what_was_let_in_since_the_last_count_waits_too(rule: Rule) -> None:
    await rule.counts(40)

    assert await rule.admits(*[LOW] * 30)
    assert not await rule.admits(LOW)
    await rule.counts(40)
    assert await rule.admits(LOW)


async def test_it_counts_once_a_second_and_only_when_asked(rule: Rule) -> None:
    for _ in range(100):
        await rule.taken()
    assert rule.ledger.counts == 1

    await rule.clock.advance(3600.0)
    assert rule.ledger.counts == 1
    await rule.taken()
    assert rule.ledger.counts == 2


@pytest.mark.parametrize(("took", "pause"), [(0.01, 1.0), (0.3, 6.0), (9.0, 10.0)])
async def test_a_count_that_takes_long_is_asked_less_often(rule: Rule, took: float, pause: float) -> None:
    rule.ledger.seconds = took
    await rule.counts(0)
    before = rule.ledger.counts

    await rule.clock.advance(pause - 0.001)
    await rule.taken()
    await asyncio.sleep(0)
    assert rule.ledger.counts == before
    await rule.clock.advance(0.002)
    await rule.taken()
    await asyncio.sleep(0)
    assert rule.ledger.counts == before + 1


async def test_nobody_is_refused_by_an_old_number(rule: Rule) -> None:
    await rule.counts(100)
    rule.ledger.number = 0
    await rule.clock.advance(10.0)

    assert await rule.admits(LOW)


async def test_many_wait_for_one_count(rule: Rule) -> None:
    await rule.counts(100)
    before = rule.ledger.counts
    rule.ledger.open.clear()
    await rule.clock.advance(10.0)
    asking = [asyncio.create_task(rule.admits(LOW)) for _ in range(10)]
    await asyncio.sleep(0)
    asking.pop().cancel()
    rule.ledger.open.set()

    assert await asyncio.gather(*asking) == [False] * 9
    assert rule.ledger.counts == before + 1


async def test_while_nobody_can_count_the_last_count_stands(rule: Rule) -> None:
    await rule.counts(60)
    rule.ledger.error = Unavailable("away")
    for _ in range(5):
        await rule.counts(0)
        # Whether these were ever written nobody knows: none is held against the next one.
        assert await rule.admits(*[MEDIUM] * 30)

    rule.ledger.error = None
    await rule.counts(100)
    assert await rule.taken() == []


async def test_a_refusal_names_limit_number_priority_and_who_is_taken(rule: Rule) -> None:
    await rule.counts(62)
    told = rule.refuse(HIGH, LOW)

    assert told.detail == "MAX_WAITING_TASKS is 100: LOW is taken while fewer than 50 tasks wait, and 62 do"
    assert [(each.field, each.allowed) for each in told.errors] == [("priority", ("HIGH", "MEDIUM"))]
    assert [rule.refuse(each).headers["retry-after"] for each in Priority] == ["5", "10", "20"]


async def test_refused_tasks_are_counted_by_their_own_queue(rule: Rule) -> None:
    rule.refuse(HIGH, LOW, LOW)

    refused = {
        queue: rule.metrics.registry.get_sample_value("baton_tasks_refused_total", {"queue": queue})
        for queue in ("tasks.high", "tasks.medium", "tasks.low")
    }
    assert refused == {"tasks.high": 1, "tasks.medium": 0, "tasks.low": 2}


async def test_a_change_is_logged_and_not_each_request(rule: Rule) -> None:
    with structlog.testing.capture_logs() as logs:
        for number in (60, 70, 46, 52):
            await rule.counts(number)
            rule.refuse(LOW)
        await rule.counts(100)
        rule.refuse(HIGH)
        rule.refuse(MEDIUM)
        await rule.counts(44)
        await rule.counts(0)

    assert [(line["event"], line.get("priority")) for line in logs] == [
        ("tasks refused", "LOW"),
        ("tasks refused", "HIGH"),
        ("tasks taken again", None),
    ]


class TestOverHttp:
    @pytest_asyncio.fixture
    async def api(self) -> AsyncIterator[Gateway]:
        """Four tasks wait: LOW is full."""
        async with gateway(max_waiting_tasks=8) as api:
            await api.client.post(TASKS, json={"kind": "echo"}, headers={"idempotency-key": "k"})
            for _ in range(3):
                await api.submit()
            yield api

    async def test_a_refusal_is_a_429_that_says_when_to_repeat(self, api: Gateway) -> None:
        response = await api.client.post(TASKS, json={"kind": "echo", "priority": "LOW"})

        assert problem(response) == (429, "backlog-full")
        assert response.headers["retry-after"] == "20"
        assert response.json()["errors"][0]["allowed"] == ["HIGH", "MEDIUM"]
        assert (await api.client.post(TASKS, json={"kind": "echo"})).status_code == 201

    async def test_a_batch_is_refused_whole(self, api: Gateway) -> None:
        tasks = [{"kind": "echo"}, {"kind": "echo", "priority": "LOW"}]
        response = await api.client.post(f"{TASKS}/batch", json={"tasks": tasks})

        assert problem(response) == (429, "backlog-full")
        assert len((await api.client.get(TASKS)).json()["items"]) == 4

    async def test_the_repeat_of_what_was_accepted_is_answered(self, api: Gateway) -> None:
        for _ in range(4):
            await api.client.post(TASKS, json={"kind": "echo", "priority": "HIGH"})
        key = {"idempotency-key": "k"}
        repeat = await api.client.post(TASKS, json={"kind": "echo"}, headers=key)
        other = await api.client.post(TASKS, json={"kind": "echo", "payload": 1}, headers=key)
        new = await api.client.post(TASKS, json={"kind": "echo"}, headers={"idempotency-key": "new"})

        assert (repeat.status_code, repeat.headers["idempotency-replayed"]) == (201, "true")
        assert problem(other) == (422, "key-reused")
        assert problem(new) == (429, "backlog-full")

    async def test_the_repeat_of_a_batch_is_answered(self) -> None:
        async with gateway(max_waiting_tasks=4) as api:
            tasks, key = {"tasks": [{"kind": "echo"}] * 5}, {"idempotency-key": "k"}
            first, repeat = [
                await api.client.post(f"{TASKS}/batch", json=tasks, headers=key) for _ in range(2)
            ]

        assert [first.status_code, repeat.status_code] == [201, 201]
        assert repeat.headers["idempotency-replayed"] == "true"
        ids = [[task["id"] for task in each.json()["items"]] for each in (first, repeat)]
        assert ids[0] == ids[1]

    async def test_while_the_database_is_away_the_answer_is_503(self) -> None:
        async with gateway(max_waiting_tasks=8, request_timeout_seconds=0.05) as api:
            vars(api.ledger.submissions).update(submit=_away, waiting=_away)
            answers = [await api.client.post(TASKS, json={"kind": "echo"}) for _ in range(3)]

        assert [problem(each) for each in answers] == [(503, "late")] * 3


async def _away(*_args: object) -> None:
    raise Unavailable("away")


async def test_it_works_on_the_ledger_in_memory() -> None:
    ledger = MemoryLedger(clock := ManualClock())
    admission = Admission(ledger.submissions, 2, clock, Metrics())

    for expected in (True, False):
        one = submission(priority=LOW)
        assert await admission.admits([one]) is expected
        await ledger.submissions.submit([one])
        await clock.advance(1.0)
