"""The way in: what becomes of a submission when the ledger is slow, away, locked or refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from gateway.admission import Admission
from gateway.intake import Intake
from gateway.problems import Problem
from pipeline.monitoring import Metrics
from pipeline.testing import ManualClock, MemoryLedger
from storage.errors import Closed, LockTimeout, OutcomeUnknown, Overloaded, Refused, Unavailable
from storage.model import Caller, KeyReused
from tests.support.builders import submission
from tests.support.gateway import TASKS, Broken, Hands, gateway, problem
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.model import Accepted, Submission


class Gate:
    """Submissions that are written once the gate opens; keys in `locked` are held by someone else."""

    def __init__(self) -> None:
        self.memory = MemoryLedger(ManualClock())
        self.open = asyncio.Event()
        self.groups: list[list[str | None]] = []
        self.locked: set[str] = set()
        self.errors: list[Exception] = []

    async def submit(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused]:
        self.groups.append([each.key or each.name for each in submissions])
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        if any(each.key in self.locked for each in submissions):
            raise LockTimeout("a key is being written by another transaction")
        return await self.memory.submissions.submit(submissions)

    async def repeated(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused | None]:
        return await self.memory.submissions.repeated(submissions)

    async def waiting(self, most: int) -> int:
        return await self.memory.submissions.waiting(most)

    async def kept(self, which: Submission) -> bool:
        return await self.memory.tasks.get(Caller(), which.id) is not None


def unlimited(gate: Gate) -> Intake:
    """An intake that no backlog closes."""
    return Intake(gate, Admission(gate, 0, ManualClock(), Metrics()))


async def test_repeats_that_are_looked_up_are_bounded_in_bytes() -> None:
    """Where the backlog leaves no room, each keyed request may be one; a database away answers none."""

    class Silent(Gate):
        async def repeated(self, submissions: Sequence[Submission]) -> list[Accepted | KeyReused | None]:
            await self.open.wait()
            return await super().repeated(submissions)

        async def waiting(self, most: int) -> int:
            return most

    gate = Silent()
    intake = Intake(gate, Admission(gate, 4, ManualClock(), Metrics()))
    payload = f'"{"x" * (256 * 1024)}"'
    keyed = [submission(key=f"k-{number}", payload=payload) for number in range(300)]
    asked = [asyncio.create_task(intake.submit(each)) for each in keyed]
    await eventually(lambda: any(each.done() for each in asked))
    assert {type(each.exception()) for each in asked if each.done()} == {Overloaded}
    gate.open.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {Overloaded, Problem} <= {type(answer) for answer in answers}


async def test_what_arrives_during_a_write_goes_into_the_next_one_together() -> None:
    gate = Gate()
    intake = unlimited(gate)
    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "c"):
            group.create_task(intake.submit(submission(name=name)))
        await eventually(lambda: gate.groups)
        for name in ("d", "e"):
            group.create_task(intake.submit(submission(name=name)))
        await eventually(lambda: intake.waiting == 5)
        gate.open.set()

    assert gate.groups in ([["a"], ["b", "c", "d", "e"]], [["a", "b", "c"], ["d", "e"]])
    assert intake.waiting == 0


async def test_keys_have_a_lane_of_their_own() -> None:
    gate = Gate()
    intake = unlimited(gate)
    async with asyncio.TaskGroup() as group:
        group.create_task(intake.submit(submission(key="k")))
        group.create_task(intake.submit(submission(name="plain")))
        await eventually(lambda: len(gate.groups) == 2)
        gate.open.set()

    assert sorted(gate.groups, key=str) == [["k"], ["plain"]]


async def test_a_locked_key_fails_its_own_request_only() -> None:
    gate = Gate()
    gate.open.set()
    gate.locked = {"guilty"}
    intake = unlimited(gate)
    innocent = [submission(key=f"k{number}") for number in range(4)]
    guilty = submission(key="guilty")

    answers = await asyncio.gather(
        *(intake.submit(each) for each in [*innocent[:2], guilty, *innocent[2:]]), return_exceptions=True
    )

    assert isinstance(answers[2], LockTimeout)
    assert [await gate.kept(each) for each in innocent] == [True] * 4
    assert not await gate.kept(guilty)


async def test_a_batch_is_one_request_among_others() -> None:
    gate = Gate()
    gate.open.set()
    gate.errors = [Refused(group) for group in ("all", "the first", "the others", "the second")]
    intake = unlimited(gate)
    one, other, *batch = [submission(name=name) for name in "abcd"]

    answers = await asyncio.gather(
        intake.submit(one), intake.submit(other), intake.submit_batch(batch), return_exceptions=True
    )

    assert gate.groups == [["a", "b", "c", "d"], ["a"], ["b", "c", "d"], ["b"], ["c", "d"]]
    assert [type(answer) for answer in answers] == [Refused, Refused, list]


async def test_a_locked_key_of_a_batch_fails_the_batch_only() -> None:
    gate = Gate()
    gate.open.set()
    gate.locked = {"guilty"}
    intake = unlimited(gate)
    guilty, innocent = ([submission(key=key) for _ in range(2)] for key in ("guilty", "k"))
    batches = [[first, replace(second, batch=first.id)] for first, second in (guilty, innocent)]

    answers = await asyncio.gather(*(intake.submit_batch(batch) for batch in batches), return_exceptions=True)

    assert isinstance(answers[0], LockTimeout)
    assert [await gate.kept(each) for batch in batches for each in batch] == [False, False, True, True]


async def test_after_an_unknown_outcome_the_same_group_is_written_again() -> None:
    gate = Gate()
    gate.open.set()
    gate.errors = [OutcomeUnknown("connection closed"), Unavailable("connection refused")]
    intake = unlimited(gate)
    mine = submission(key="k")

    accepted = await intake.submit(mine)

    assert accepted.task_id == mine.id
    assert not accepted.replayed
    assert gate.groups == [["k"], ["k"], ["k"]]


async def test_a_reused_key_is_a_problem() -> None:
    gate = Gate()
    gate.open.set()
    intake = unlimited(gate)
    await intake.submit(submission(key="k", fingerprint="a"))

    with pytest.raises(Problem, match="another body"):
        await intake.submit(submission(key="k", fingerprint="b"))


async def test_who_leaves_does_not_stop_the_write() -> None:
    gate = Gate()
    intake = unlimited(gate)
    mine = submission()
    leaving = asyncio.create_task(intake.submit(mine))
    await eventually(lambda: gate.groups)

    leaving.cancel()
    gate.open.set()
    await eventually(lambda: intake.waiting == 0)

    assert await gate.kept(mine)


async def test_closing_writes_what_waits_and_takes_nothing_more() -> None:
    gate = Gate()
    intake = unlimited(gate)
    mine = [submission(), submission(), submission(key="k")]
    submitting = [asyncio.create_task(intake.submit(each)) for each in mine]
    await eventually(lambda: intake.waiting == 3)

    closing = asyncio.create_task(intake.close(10.0))
    gate.open.set()
    await closing

    assert [each.result().task_id for each in submitting] == [each.id for each in mine]
    with pytest.raises(Closed):
        await intake.submit(submission())


class TestOverHttp:
    async def test_nobody_gets_a_201_before_the_ledger_has_answered(self) -> None:
        gate = Gate()
        async with gateway(Hands(submissions=gate)) as api, asyncio.TaskGroup() as group:
            posting = group.create_task(api.client.post(TASKS, json={"kind": "echo"}))
            await eventually(lambda: gate.groups)
            assert not posting.done()
            gate.open.set()

        assert posting.result().status_code == 201

    @pytest.mark.parametrize("query", ["", "?wait=5"])
    @pytest.mark.parametrize("key", [None, "k"])
    async def test_a_deadline_passes_and_the_write_goes_on(self, query: str, key: str | None) -> None:
        gate = Gate()
        headers = {"idempotency-key": key} if key else {}
        async with gateway(Hands(submissions=gate), request_timeout_seconds=0.05) as api:
            response = await api.client.post(f"{TASKS}{query}", json={"kind": "echo"}, headers=headers)
            gate.open.set()
            await eventually(lambda: gate.memory._state.tasks)

        assert problem(response) == (503, "late")
        assert int(response.headers["retry-after"]) > 0

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (LockTimeout("canceling statement due to lock timeout"), (409, "busy")),
            (Refused("invalid byte sequence for encoding"), (422, "not-storable")),
            (Overloaded("20000 writes are waiting"), (503, "overloaded")),
            (Closed("this process is going down"), (503, "stopping")),
            (RuntimeError("secret"), (500, "internal")),
        ],
    )
    @pytest.mark.parametrize("key", [None, "k"])
    async def test_each_failure_has_its_answer(
        self, error: Exception, expected: tuple[int, str], key: str | None
    ) -> None:
        headers = {"idempotency-key": key} if key else {}
        async with gateway(Hands(submissions=Broken(error))) as api:
            response = await api.client.post(TASKS, json={"kind": "echo"}, headers=headers)

        assert problem(response) == expected
        assert ("retry-after" in response.headers) == (expected[0] in {503, 409})
        assert str(error) not in response.text

    async def test_a_full_lane_answers_503(self) -> None:
        gate = Gate()
        async with gateway(Hands(submissions=gate)) as api:
            api.intake._plain._waiting_rows = 1
            async with asyncio.TaskGroup() as group:
                first = group.create_task(api.client.post(TASKS, json={"kind": "echo"}))
                await eventually(lambda: gate.groups)
                second = await api.client.post(TASKS, json={"kind": "echo"})
                gate.open.set()

        assert problem(second) == (503, "overloaded")
        assert first.result().status_code == 201

    async def test_a_client_that_hangs_up_does_not_stop_the_write(self) -> None:
        gate = Gate()
        async with gateway(Hands(submissions=gate)) as api:
            posting = asyncio.create_task(api.client.post(TASKS, json={"kind": "echo"}))
            await eventually(lambda: gate.groups)
            posting.cancel()
            gate.open.set()
            await eventually(lambda: gate.memory._state.tasks)
