"""Where custody passes from the broker to the database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.duty import Duty
from pipeline.slots import GATHER_SECONDS, Slots
from pipeline.stages import Claim, Claimed, HandOver
from pipeline.testing import ManualClock, MemoryLedger
from storage.errors import LockTimeout, OutcomeUnknown, StorageError, Unavailable
from storage.model import Reference
from tests.support.builders import run
from tests.support.stages import ending, on_duty, sent, wave_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from storage.model import Run


class Faulty(MemoryLedger):
    """Carries the first claim out and then fails it, as when a reply is lost; answers once `go` is set."""

    def __init__(self, clock: ManualClock, failure: StorageError | None = None) -> None:
        super().__init__(clock)
        self._failure = failure
        self._claim = self.runs.claim
        self.claims = 0
        self.go = asyncio.Event()
        self.go.set()
        self.runs.claim = self.claim  # type: ignore[method-assign]  # the fault

    async def claim(self, references: Sequence[Reference], worker_id: Any, kinds: Sequence[str]) -> list[Run]:
        self.claims += 1
        runs = await self._claim(references, worker_id, kinds)
        await self.go.wait()
        if self.claims == 1 and self._failure:
            raise self._failure
        return runs


@pytest.mark.parametrize("failure", [OutcomeUnknown("lost"), Unavailable("away"), LockTimeout("locked")])
async def test_a_claim_is_repeated_until_its_answer_is_known(failure: StorageError) -> None:
    clock = ManualClock()
    ledger, slots = Faulty(clock, failure), Slots(2)
    references = await sent(ledger, 2)
    for reference in references:
        slots.reserve(reference)
    wave, settled = wave_of(references)
    claiming = asyncio.create_task(Claim(ledger.runs, slots, on_duty(clock), ["echo"], clock)(wave))
    await clock.advance(0.1)
    claimed = await claiming
    assert ({task.reference for task in claimed.runs}, ledger.claims) == (set(references), 2)
    assert (settled, slots.held) == ([], frozenset(references))


async def test_what_the_database_says_for_good_is_raised_so_that_the_flow_gives_the_wave_back() -> None:
    clock = ManualClock()
    ledger = Faulty(clock, StorageError("permission denied"))
    wave, _ = wave_of(await sent(ledger))
    with pytest.raises(StorageError):
        await Claim(ledger.runs, Slots(1), on_duty(clock), ["echo"])(wave)


async def test_a_refused_reference_frees_its_slot() -> None:
    clock = ManualClock()
    ledger, slots = MemoryLedger(clock), Slots(4)
    [waiting] = await sent(ledger)
    stale = Reference(waiting.task_id, 7)
    for reference in (waiting, stale):
        slots.reserve(reference)
    await Claim(ledger.runs, slots, on_duty(clock), ["echo"])(wave_of([waiting, stale])[0])
    assert slots.held == {waiting}


async def test_the_longer_a_claim_takes_the_more_are_claimed_ahead() -> None:
    clock = ManualClock()
    ledger, slots = MemoryLedger(clock), Slots(100, clock)
    ending(slots, 100)
    await clock.advance(1.0)
    original = ledger.runs.claim

    async def claim(references: Sequence[Reference], worker_id: UUID, kinds: Sequence[str]) -> list[Run]:
        await clock.sleep(0.1)
        return await original(references, worker_id, kinds)

    ledger.runs.claim = claim  # type: ignore[method-assign]  # slow
    references = await sent(ledger)
    stage = Claim(ledger.runs, slots, on_duty(clock), ["echo"], clock)
    claiming = asyncio.create_task(stage(wave_of(references)[0]))
    await clock.advance(0.1)
    await claiming
    ends_per_second = 100 / 1.1
    assert slots.free == 100 + int(ends_per_second * (2 * 0.1 + GATHER_SECONDS))


async def test_an_unknown_kind_is_handed_back() -> None:
    clock = ManualClock()
    ledger, slots = MemoryLedger(clock), Slots(1)
    [reference] = await sent(ledger, kind="new.kind")
    slots.reserve(reference)
    claimed = await Claim(ledger.runs, slots, on_duty(clock), ["echo"])(wave_of([reference])[0])
    assert (claimed.runs, slots.free) == ([], 1)
    await clock.advance(31)
    assert [row.reference for row in await ledger.outbox.poll(10, 30)] == [reference]


async def test_nothing_is_claimed_before_the_database_has_heard_from_the_worker() -> None:
    clock = ManualClock()
    ledger, duty = Faulty(clock), Duty(clock, 30)
    wave, _ = wave_of(await sent(ledger))
    claiming = asyncio.create_task(Claim(ledger.runs, Slots(1), duty, ["echo"])(wave))
    await clock.advance(1)
    assert ledger.claims == 0
    duty.heard(clock.now())
    assert len((await claiming).runs) == 1


async def test_a_claim_answered_late_starts_nothing_before_the_database_has_heard_again() -> None:
    clock = ManualClock()
    ledger, duty = Faulty(clock), on_duty(clock)
    ledger.go.clear()
    wave, _ = wave_of(await sent(ledger))
    claiming = asyncio.create_task(Claim(ledger.runs, Slots(1), duty, ["echo"])(wave))
    await clock.advance(16)
    ledger.go.set()
    await clock.advance(0)
    assert (ledger.claims, claiming.done()) == (1, False)
    duty.heard(clock.now())
    assert len((await claiming).runs) == 1


async def test_a_wave_of_which_nothing_was_taken_waits_for_nobody() -> None:
    """What the claim handed back comes again: a message of it that came now would be acked with the wave."""
    clock = ManualClock()
    ledger, slots = Faulty(clock), Slots(1)
    ledger.go.clear()
    [reference] = await sent(ledger, kind="new.kind")
    slots.reserve(reference)
    wave, _ = wave_of([reference])
    claiming = asyncio.create_task(Claim(ledger.runs, slots, on_duty(clock), ["echo"])(wave))
    await clock.advance(16)
    ledger.go.set()
    await clock.advance(0)
    assert claiming.done()
    assert (claiming.result().runs, slots.free) == ([], 1)


async def test_a_worker_declared_dead_meanwhile_starts_nothing() -> None:
    clock = ManualClock()
    ledger, slots, duty = Faulty(clock), Slots(1), on_duty(clock)
    ledger.go.clear()
    references = await sent(ledger)
    slots.reserve(references[0])
    claiming = asyncio.create_task(Claim(ledger.runs, slots, duty, ["echo"])(wave_of(references)[0]))
    await clock.advance(1)
    duty.declared_dead()
    ledger.go.set()
    duty.heard(clock.now())
    assert ((await claiming).runs, slots.free) == ([], 1)


async def test_handing_over_lets_the_messages_go() -> None:
    task = run()
    wave, settled = wave_of([task.reference])
    assert await HandOver()(Claimed(wave, [task])) == [task]
    assert settled == [None]
