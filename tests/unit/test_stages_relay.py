"""The relay's stages: what the broker confirmed leaves the outbox, and nothing else does."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from pipeline.broker import BrokerUnavailable, Message, Publication, QueueMismatch
from pipeline.references import decode
from pipeline.stages import PollOutbox, Publish, Published, Settle
from pipeline.stages.poll_outbox import FEW_ROWS, LONGEST_REST_SECONDS, RESTS, WOKEN_RESTS
from pipeline.stages.publish import Withheld
from pipeline.stages.settle import MANY
from pipeline.testing import ManualClock, MemoryBroker, MemoryLedger
from storage.errors import OutcomeUnknown, StorageError, Unavailable
from storage.model import Caller, Capacity, OutboxRow, OutboxStatus, Priority, Status
from tests.support.builders import retry, run, submission
from tests.support.stages import watched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.flow import Parcel

CALLER = Caller()
POLL_SECONDS = 0.01
STEP_SECONDS = POLL_SECONDS / 2


class Answering(MemoryBroker):
    """Gives the answers it was told to give, and remembers what it was sent."""

    def __init__(self, *answers: Publication, mismatch: bool = False) -> None:
        super().__init__()
        self.answers = list(answers)
        self.mismatch = mismatch
        self.sizes: list[int] = []
        self.declared: list[str] = []

    async def publish(self, messages: Sequence[Message]) -> list[Publication]:
        self.sizes += [len(decode(message.body)) for message in messages]
        return [self.answers.pop(0) if self.answers else Publication.CONFIRMED for _ in messages]

    async def declare(self, route: str) -> None:
        self.declared.append(route)
        await super().declare(route)
        if self.mismatch:
            raise QueueMismatch("queue tasks.dlq exists with other arguments")


def rows(count: int, route: str = "tasks.high") -> list[OutboxRow]:
    return [
        OutboxRow(id=number, task_id=run().task_id, dispatch=1, priority=Priority.HIGH, route=route)
        for number in range(count)
    ]


async def pulled(poll: PollOutbox, clock: ManualClock) -> Parcel[list[OutboxRow]] | None:
    """Pull while the clock goes on."""
    pulling = asyncio.create_task(poll.pull())
    while not pulling.done():
        await clock.advance(STEP_SECONDS)
    return pulling.result()


async def apart_when_woken(poll: PollOutbox, ledger: MemoryLedger, clock: ManualClock) -> float:
    """Tell how long after a poll the next one is made, when a task comes in between."""
    polls = watched(ledger, clock, seconds=POLL_SECONDS)
    for _ in range(2):
        await pulled(poll, clock)
        await ledger.submissions.submit([submission()])
    first, second = polls
    return second.at - first.at


async def test_while_the_broker_holds_enough_batches_are_small_and_seldom() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    polls = watched(ledger, clock, seconds=POLL_SECONDS)
    await ledger.submissions.submit([submission() for _ in range(600)])
    enough, sizes = [True, True, False, False], list[int]()

    def is_enough(_rows: Sequence[OutboxRow]) -> bool:
        return enough.pop(0)

    async with PollOutbox(
        ledger.outbox, ledger.signals, enough=is_enough, batch_size=200, clock=clock
    ) as poll:
        for _ in range(3):
            parcel = await pulled(poll, clock)
            assert parcel is not None
            sizes.append(len(parcel.body))
        await pulled(poll, clock)
    assert sizes == [200, FEW_ROWS, FEW_ROWS]
    apart = [later.at - earlier.at for earlier, later in pairwise(polls)]
    rest_seconds = RESTS * POLL_SECONDS
    assert apart == pytest.approx([rest_seconds, rest_seconds, POLL_SECONDS], abs=1.2 * STEP_SECONDS)


async def test_a_relay_that_is_woken_while_the_broker_holds_enough_rests_half_as_long() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission() for _ in range(400)])
    async with PollOutbox(
        ledger.outbox, ledger.signals, enough=lambda _: True, batch_size=100, clock=clock
    ) as poll:
        apart = await apart_when_woken(poll, ledger, clock)
        assert apart == pytest.approx(WOKEN_RESTS * POLL_SECONDS, abs=1.2 * STEP_SECONDS)


async def test_a_batch_that_cannot_be_carried_on_is_due_again_and_has_cost_nothing() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])
    async with PollOutbox(ledger.outbox, ledger.signals) as poll:
        parcel = await poll.pull()
        assert parcel is not None
        await parcel.settle(BrokerUnavailable("away"))
        pulling = asyncio.create_task(poll.pull())
        await clock.advance(0)
        await clock.advance(2)
        again = await asyncio.wait_for(pulling, timeout=0.5)
        assert again is not None
        assert (again.body[0].id, again.body[0].attempts) == (parcel.body[0].id, 0)


async def test_a_batch_under_way_is_no_other_relays_until_its_lease_runs_out() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])
    async with PollOutbox(ledger.outbox, ledger.signals, lease_seconds=30) as poll:
        assert await poll.pull() is not None
        await clock.advance(29)
        assert await ledger.outbox.poll(10, 30) == []
        await clock.advance(2)
        assert len(await ledger.outbox.poll(10, 30)) == 1


async def test_the_lease_of_a_batch_lasts_for_as_long_as_it_is_under_way() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])
    async with PollOutbox(ledger.outbox, ledger.signals, lease_seconds=5, clock=clock) as poll:
        parcel = await poll.pull()
        assert parcel is not None
        await clock.advance(60)
        assert await ledger.outbox.poll(10, 30) == []
        await parcel.settle(None)
        await clock.advance(6)
        assert len(await ledger.outbox.poll(10, 30)) == 1


@pytest.mark.parametrize("error", [Unavailable("away"), OutcomeUnknown("lost")])
async def test_a_lease_that_could_not_be_renewed_is_renewed_later(error: StorageError) -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    original, faults = ledger.outbox.renew, [error]

    async def faulty(row_ids: Sequence[int], lease_seconds: float) -> None:
        if faults:
            raise faults.pop()
        await original(row_ids, lease_seconds)

    ledger.outbox.renew = faulty  # type: ignore[method-assign]  # the fault
    await ledger.submissions.submit([submission()])
    async with PollOutbox(ledger.outbox, ledger.signals, lease_seconds=6, clock=clock) as poll:
        assert await poll.pull() is not None
        await clock.advance(60)
        assert await ledger.outbox.poll(10, 30) == []


async def test_what_a_relay_leaves_unsettled_is_another_ones_when_the_lease_has_run_out() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])
    async with PollOutbox(ledger.outbox, ledger.signals, lease_seconds=6, clock=clock) as poll:
        assert await poll.pull() is not None
    await clock.advance(7)
    assert len(await ledger.outbox.poll(10, 30)) == 1


async def test_no_row_is_leased_while_the_broker_is_not_ready() -> None:
    clock, ready = ManualClock(), asyncio.Event()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])

    async def broker_ready() -> None:
        await ready.wait()

    async with PollOutbox(ledger.outbox, ledger.signals, ready=broker_ready) as poll:
        pulling = asyncio.create_task(poll.pull())
        await clock.advance(0)
        assert len(await ledger.outbox.poll(10, 30)) == 1
        ready.set()
        await poll.quiesce()
        assert await pulling is None


async def test_a_wakeup_shortens_the_wait_for_rows() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    async with PollOutbox(ledger.outbox, ledger.signals, poll_seconds=3600) as poll:
        pulling = asyncio.create_task(poll.pull())
        await clock.advance(0)
        assert not pulling.done()
        await ledger.submissions.submit([submission()])
        parcel = await asyncio.wait_for(pulling, timeout=5)
        assert parcel is not None
        assert len(parcel.body) == 1


async def test_without_a_wakeup_rows_are_found_by_looking_now_and_then() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    looks = watched(ledger, clock)
    await ledger.submissions.submit([submission(delay_seconds=2.5)])
    async with PollOutbox(ledger.outbox, ledger.signals, poll_seconds=1.0) as poll:
        pulling = asyncio.create_task(poll.pull())
        for _ in range(2):
            await clock.advance(1.0)
            assert not pulling.done()
        await clock.advance(1.0)
        assert await asyncio.wait_for(pulling, timeout=0.5) is not None
    assert len(looks) <= 5


@pytest.mark.parametrize(("due", "polls"), [(5, 2), (4, 1)])
async def test_who_found_fewer_rows_than_it_takes_waits_for_more(due: int, polls: int) -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    looks = watched(ledger, clock)
    await ledger.submissions.submit([submission() for _ in range(due)])
    async with PollOutbox(ledger.outbox, ledger.signals, batch_size=5) as poll:
        assert await poll.pull() is not None
        pulling = asyncio.create_task(poll.pull())
        await clock.advance(0)
        assert len(looks) == polls
        await ledger.submissions.submit([submission()])
        assert await asyncio.wait_for(pulling, timeout=0.5) is not None


async def test_a_relay_rests_after_a_poll_for_few_rows_by_how_long_it_took() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])
    async with PollOutbox(ledger.outbox, ledger.signals, clock=clock) as poll:
        apart = await apart_when_woken(poll, ledger, clock)
        assert apart == pytest.approx(RESTS * POLL_SECONDS, abs=1.2 * STEP_SECONDS)


@pytest.mark.parametrize("enough", [True, False])
async def test_a_poll_that_took_long_makes_no_long_rest(*, enough: bool) -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    polls = watched(ledger, clock, seconds=1.0)
    await ledger.submissions.submit([submission() for _ in range(400 if enough else 1)])
    async with PollOutbox(
        ledger.outbox, ledger.signals, enough=lambda _: enough, batch_size=100, clock=clock
    ) as poll:
        for _ in range(2):
            await pulled(poll, clock)
            await ledger.submissions.submit([submission()])
    first, second = polls
    assert second.at - (first.at + 1.0) == pytest.approx(LONGEST_REST_SECONDS, abs=1.2 * STEP_SECONDS)


async def test_a_relay_that_stops_waits_neither_for_rows_nor_for_the_broker() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)

    async def never() -> None:
        await asyncio.Event().wait()

    async def at_once() -> None:
        pass

    for ready in (never, at_once):
        async with PollOutbox(ledger.outbox, ledger.signals, ready=ready) as poll:
            pulling = asyncio.create_task(poll.pull())
            await clock.advance(0)
            await poll.quiesce()
            assert await asyncio.wait_for(pulling, timeout=0.5) is None


@pytest.mark.parametrize(
    ("found", "capacity", "sizes"),
    [
        (1, Capacity(1, 64), [1]),
        (10, Capacity(1, 64), [10]),
        (10, Capacity(2, 64), [5, 5]),
        (10, Capacity(1, 4), [4, 4, 2]),
        (3, Capacity(1, 0), [1, 1, 1]),
        (3, Capacity(0, 0), [1, 1, 1]),
        (160, Capacity(0, 0), [10] * 16),
        (130, Capacity(1, 1000), [64, 64, 2]),
    ],
)
async def test_a_message_carries_as_many_as_workers_can_take(
    found: int, capacity: Capacity, sizes: list[int]
) -> None:
    async def ask() -> dict[Priority, Capacity]:
        return {Priority.HIGH: capacity}

    broker = Answering()
    published = await Publish(broker, ask)(rows(found))
    assert broker.sizes == sizes
    assert len(published.confirmed) == found


async def test_every_answer_of_the_broker_has_its_consequence() -> None:
    said = [Publication.CONFIRMED, Publication.RETURNED, Publication.REFUSED, Publication.UNKNOWN]
    broker = Answering(*said, Publication.RETURNED)
    batch = rows(4)
    async with broker:
        published = await Publish(broker)(batch)
    assert published == Published([batch[0]], [batch[2], batch[3]], [batch[1]])
    assert broker.declared == ["tasks.high"]


async def test_a_route_outside_the_grammar_is_undeliverable() -> None:
    broker = Answering(Publication.RETURNED)
    batch = rows(1, "orders.new")
    async with broker:
        assert (await Publish(broker)(batch)).undeliverable == batch


async def test_a_route_is_declared_once_however_many_messages_came_back() -> None:
    broker = Answering(*[Publication.RETURNED] * 3)
    async with broker:
        published = await Publish(broker)(rows(3))
    assert (len(published.confirmed), broker.declared) == (3, ["tasks.high"])


async def test_a_queue_beside_the_route_that_is_not_as_ours_costs_no_attempt() -> None:
    broker = Answering(Publication.RETURNED, mismatch=True)
    batch = rows(1)
    async with broker:
        assert await Publish(broker)(batch) == Published(confirmed=batch)


async def test_an_outage_is_raised_so_that_the_flow_gives_the_batch_back() -> None:
    broker = MemoryBroker()
    async with broker:
        broker.stop()
        with pytest.raises(BrokerUnavailable):
            await Publish(broker)(rows(1))


class Leaderless(MemoryBroker):
    """Says nothing of some queues, as a broker does whose quorum queue has no leader."""

    def __init__(self, *silent: str) -> None:
        super().__init__()
        self.silent = set(silent)
        self.sent: list[str] = []

    async def publish(self, messages: Sequence[Message]) -> list[Publication]:
        self.sent += [message.route for message in messages]
        return [
            Publication.UNKNOWN if message.route in self.silent else Publication.CONFIRMED
            for message in messages
        ]


async def test_a_silent_queue_is_tried_now_and_then_and_the_others_go_on() -> None:
    clock, broker = ManualClock(), Leaderless("tasks.low")
    publish = Publish(broker, clock=clock)
    low, high = rows(3, "tasks.low"), rows(2)
    async with broker:
        assert await publish([*low, *high]) == Published(confirmed=high, unsent=low)

        broker.sent.clear()
        published = await publish([*low, *high])
        assert (published.confirmed, published.unsent) == (high, [])
        [withheld] = published.withheld
        assert (withheld.rows, set(broker.sent)) == (low, {"tasks.high"})

        await clock.advance(withheld.seconds)
        broker.sent.clear()
        published = await publish([*low, *high])
        assert broker.sent.count("tasks.low") == 1
        assert (published.confirmed, published.unsent) == (high, low[:1])
        [again] = (await publish(low)).withheld
        assert again.seconds > withheld.seconds

        await clock.advance(again.seconds)
        broker.silent.clear()
        assert (await publish(low)).confirmed == low[:1]
        assert await publish(low) == Published(confirmed=low)


async def test_where_nothing_is_answered_no_queue_is_called_silent() -> None:
    broker = Leaderless("tasks.low", "tasks.high")
    publish = Publish(broker, clock=ManualClock())
    batch = [*rows(1, "tasks.low"), *rows(1)]
    async with broker:
        for _ in range(2):
            assert await publish(batch) == Published(unsent=batch)


async def test_a_declaration_without_answer_gives_back_its_own_rows_alone() -> None:
    class Busy(Answering):
        async def declare(self, route: str) -> None:
            raise BrokerUnavailable(f"no answer about {route}")

    broker = Busy(Publication.RETURNED)
    lost, held = rows(1, "tasks.low"), rows(1)
    async with broker:
        assert await Publish(broker)([*lost, *held]) == Published(confirmed=held, unsent=lost)


async def test_a_connection_lost_after_a_declaration_gives_back_its_own_rows_alone() -> None:
    class Ending(Answering):
        async def declare(self, route: str) -> None:
            await super().declare(route)
            self.stop()

        async def publish(self, messages: Sequence[Message]) -> list[Publication]:
            if self.declared:
                raise BrokerUnavailable("the connection was closed")
            return await super().publish(messages)

    broker = Ending(Publication.RETURNED)
    lost, held = rows(1, "tasks.low"), rows(1)
    async with broker:
        assert await Publish(broker)([*lost, *held]) == Published(confirmed=held, unsent=lost)


async def test_what_was_withheld_is_due_again_when_its_queue_is_tried() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])
    found = await ledger.outbox.poll(10, 30)
    await Settle(ledger.outbox)(Published(withheld=[Withheld(found, 7.0)]))
    await clock.advance(6.9)
    assert await ledger.outbox.poll(10, 30) == []
    await clock.advance(0.2)
    [again] = await ledger.outbox.poll(10, 30)
    assert (again.id, again.attempts) == (found[0].id, 0)


async def test_settle_lets_go_of_the_confirmed_and_keeps_the_rest() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    submissions = [submission(), submission(), submission()]
    await ledger.submissions.submit(submissions)
    confirmed, unsent, undeliverable = await ledger.outbox.poll(10, 30)
    settle = Settle(ledger.outbox, most_attempts=1)
    await settle(Published([confirmed], [unsent], [undeliverable]))
    await settle.drain(1.0)
    left = await ledger.outbox.find(CALLER, status=None, before=None, limit=10)
    by_task = {row.task_id: row for row in left if row.route != "tasks.dlq"}
    assert set(by_task) == {unsent.task_id, undeliverable.task_id}
    assert by_task[unsent.task_id].attempts == 0
    assert by_task[undeliverable.task_id].status is OutboxStatus.FAILED
    await clock.advance(2)
    assert unsent.reference in [row.reference for row in await ledger.outbox.poll(10, 30)]
    statuses = await ledger.tasks.statuses([row.task_id for row in (confirmed, unsent, undeliverable)])
    assert [status for _, status in statuses.values()] == [Status.PENDING, Status.NEW, Status.FAILED]


class Settled:
    """An outbox that remembers by which calls rows were settled; the first ones fail as told."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.calls: list[int] = []

    async def settle(self, confirmed: Sequence[tuple[int, float]]) -> None:
        self.calls.append(len(confirmed))
        if self._failures:
            raise self._failures.pop(0)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


async def test_a_few_rows_are_settled_together_a_moment_later() -> None:
    clock, outbox = ManualClock(), Settled()
    settle = Settle(outbox, linger_seconds=0.05, clock=clock)
    await settle(Published(confirmed=rows(2)))
    await clock.advance(0.04)
    await settle(Published(confirmed=rows(3)))
    assert outbox.calls == []
    await clock.advance(0.02)
    assert outbox.calls == [5]
    await settle(Published(confirmed=rows(1)))
    await clock.advance(0.06)
    assert outbox.calls == [5, 1]


async def test_a_backlog_is_settled_at_once() -> None:
    outbox = Settled()
    await Settle(outbox, clock=ManualClock())(Published(confirmed=rows(MANY)))
    assert outbox.calls == [MANY]


async def test_rows_that_linger_are_settled_when_the_relay_stops() -> None:
    outbox = Settled()
    settle = Settle(outbox, clock=ManualClock())
    await settle(Published(confirmed=rows(2)))
    await settle.drain(1.0)
    assert outbox.calls == [2]


@pytest.mark.parametrize("error", [Unavailable("away"), OutcomeUnknown("lost")])
async def test_rows_that_linger_are_settled_however_long_the_database_is_away(error: StorageError) -> None:
    clock, outbox = ManualClock(), Settled(error, error)
    settle = Settle(outbox, clock=clock)
    await settle(Published(confirmed=rows(2)))
    await clock.advance(0.06)
    await settle(Published(confirmed=rows(1)))
    for _ in range(8):
        await clock.advance(0.1)
    assert outbox.calls == [2, 3, 3]
    await settle(Published(confirmed=rows(4)))
    await clock.advance(0.06)
    assert outbox.calls[3:] == [4]


async def test_what_waits_in_a_retry_queue_counts_as_queued_when_it_leaves_it() -> None:
    clock, worker_id = ManualClock(), uuid4()
    ledger = MemoryLedger(clock)
    await ledger.submissions.submit([submission()])
    [first] = await ledger.outbox.poll(10, 30)
    await ledger.outbox.settle([(first.id, 0.0)])
    [claimed] = await ledger.runs.claim([first.reference], worker_id, ["echo"])
    await ledger.runs.record([retry(claimed, 30)])
    [again] = await ledger.outbox.poll(10, 30)
    settle = Settle(ledger.outbox)
    await settle(Published(confirmed=[again]))
    await settle.drain(1.0)
    await clock.advance(29)
    assert await ledger.upkeep.resend(Priority.MEDIUM, None, 10) == 0
    await clock.advance(2)
    assert await ledger.upkeep.resend(Priority.MEDIUM, None, 10) == 1
