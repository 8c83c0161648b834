from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pipeline.bench.http import Target
from pipeline.bench.load import ClosedLoop, Exchange, Load, OpenLoop, Unreachable
from tests.support.answering import Reply, Request, answering
from tests.support.ports import free_ports
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.answering import Served


class Heard:
    """What a load told of."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.bodies: list[bytes] = []

    def __call__(self, exchange: Exchange, body: bytes) -> None:
        self.exchanges.append(exchange)
        self.bodies.append(body)

    @property
    def statuses(self) -> Counter[int | None]:
        return Counter(each.status for each in self.exchanges)


def in_turn(*replies: Reply) -> Callable[[Request], Reply]:
    """Answer so, and for ever as the last one."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def requests(served: Served, count: int) -> Iterator[bytes]:
    return itertools.repeat(served.target.post("/tasks", b"{}"), count)


async def finish(load: Load) -> None:
    assert await load.quiet(10)


class TestClosedLoop:
    async def test_every_request_is_sent_once_and_its_answer_recorded(self) -> None:
        heard = Heard()
        async with (
            answering(lambda _: Reply(201, {"id": 1})) as served,
            ClosedLoop(served.target, 3, heard) as load,
        ):
            load.start(requests(served, 50))
            await finish(load)
            assert len(served.connections) == 3
        assert heard.statuses == {201: 50}
        assert set(heard.bodies) == {b'{"id":1}'}
        assert all(each.due_at == each.sent_at <= each.ended_at for each in heard.exchanges)
        assert load.answers == 50

    async def test_answers_are_told_apart_by_their_status(self) -> None:
        heard = Heard()
        answers = in_turn(Reply(429), Reply(503), Reply(201), Reply(422), Reply(201))
        async with answering(answers) as served, ClosedLoop(served.target, 1, heard) as load:
            load.start(requests(served, 6))
            await finish(load)
        assert [each.status for each in heard.exchanges] == [429, 503, 201, 422, 201, 201]

    async def test_a_lost_connection_leaves_its_request_unanswered_and_is_replaced(self) -> None:
        asked: list[Request] = []
        heard = Heard()
        answers = in_turn(Reply(201), Reply(None), Reply(201))

        def answer(request: Request) -> Reply:
            asked.append(request)
            return answers(request)

        async with answering(answer) as served, ClosedLoop(served.target, 1, heard) as load:
            load.start(requests(served, 4))
            await finish(load)
            assert len(served.connections) == 2
        assert [each.status for each in heard.exchanges] == [201, None, 201, 201]
        assert len(asked) == 4

    async def test_a_connection_that_the_server_gives_up_is_replaced_and_nothing_is_lost(self) -> None:
        heard = Heard()
        answers = in_turn(Reply(201, headers={"connection": "close"}), Reply(201))
        async with answering(answers) as served, ClosedLoop(served.target, 1, heard) as load:
            load.start(requests(served, 3))
            await finish(load)
            assert len(served.connections) == 2
        assert heard.statuses == {201: 3}

    async def test_what_is_no_http_leaves_the_request_unanswered(self) -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await reader.read(1):
                writer.write(b"220 mail.test ESMTP\r\n")
                await reader.read()
            writer.close()

        heard = Heard()
        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        async with server:
            target = Target.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            async with ClosedLoop(target, 1, heard) as load:
                load.start(iter([target.post("/tasks", b"{}")]))
                await finish(load)
        assert heard.statuses == {None: 1}

    async def test_what_is_given_up_is_unanswered(self) -> None:
        heard = Heard()
        held = asyncio.Event()
        async with answering(lambda _: Reply(held=held)) as served:
            async with ClosedLoop(served.target, 2, heard) as load:
                load.start(requests(served, 2))
                assert not await load.quiet(0.01)
            assert heard.statuses == {None: 2}
            held.set()

    async def test_it_halts(self) -> None:
        heard = Heard()

        def record(exchange: Exchange, body: bytes) -> None:
            heard(exchange, body)
            if len(heard.exchanges) == 5:
                load.halt()

        async with answering(lambda _: Reply()) as served, ClosedLoop(served.target, 1, record) as load:
            load.start(itertools.repeat(served.target.post("/tasks", b"{}")))
            await finish(load)
        assert heard.statuses == {201: 5}

    async def test_nobody_listens(self) -> None:
        [port] = free_ports(1)
        with pytest.raises(Unreachable, match=f"cannot reach http://127.0.0.1:{port}"):
            async with ClosedLoop(Target.of(f"http://127.0.0.1:{port}"), 1, Heard()):
                pass

    async def test_it_goes_on_when_the_server_comes_back(self) -> None:
        heard = Heard()
        [port] = free_ports(1)
        target = Target.of(f"http://127.0.0.1:{port}")
        load = ClosedLoop(target, 1, heard)
        async with answering(lambda _: Reply(None), port=port):
            await load.__aenter__()
            load.start(itertools.repeat(target.post("/tasks", b"{}")))
            await eventually(lambda: heard.exchanges)
        async with answering(lambda _: Reply(201), port=port):
            await eventually(lambda: heard.statuses[201])
            load.halt()
            await finish(load)
            await load.__aexit__()


class Schedule:
    """A clock that the test moves, and the timer that was last asked for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds > 0
        self.timers.append((round(self.now + seconds, 6), call))

    def move(self, seconds: float) -> None:
        """Let time pass at once, as a loop does that was busy: timers are called late."""
        self.now = round(self.now + seconds, 6)
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, call in due:
            call()


class TestOpenLoop:
    async def test_it_keeps_its_schedule_whatever_becomes_of_the_requests(self) -> None:
        schedule, heard, held = Schedule(), Heard(), asyncio.Event()
        asked: list[Request] = []

        def answer(request: Request) -> Reply:
            asked.append(request)
            return Reply(held=held)

        async with answering(answer) as served:
            load = OpenLoop(served.target, 10, heard, schedule.clock, schedule.later)
            async with load:
                began_at = load.start(served.target.post("/tasks", b"{}"), 100, 5)
                for sent in range(1, 6):
                    await eventually(lambda sent=sent: len(asked) == sent)  # type: ignore[misc]  # a default
                    schedule.move(0.01)
                held.set()
                await finish(load)
        assert began_at == 100.0
        assert [each.due_at for each in heard.exchanges] == pytest.approx(
            [100, 100.01, 100.02, 100.03, 100.04]
        )
        assert [each.sent_at for each in heard.exchanges] == [each.due_at for each in heard.exchanges]
        assert schedule.timers == []

    async def test_what_finds_no_connection_counts_from_when_it_was_due(self) -> None:
        schedule, heard, held = Schedule(), Heard(), asyncio.Event()
        async with answering(lambda _: Reply(held=held)) as served:
            load = OpenLoop(served.target, 1, heard, schedule.clock, schedule.later)
            async with load:
                load.start(served.target.post("/tasks", b"{}"), 100, 3)
                schedule.move(0.01)
                schedule.move(0.01)
                assert load.unsent == pytest.approx([100.01, 100.02])
                schedule.move(1)
                held.set()
                await finish(load)
        assert [each.due_at for each in heard.exchanges] == pytest.approx([100, 100.01, 100.02])
        assert [each.sent_at for each in heard.exchanges] == pytest.approx([100, 101.02, 101.02])
        assert [each.ended_at for each in heard.exchanges] == pytest.approx([101.02] * 3)

    async def test_a_generator_that_was_held_up_sends_all_that_is_due_and_says_so(self) -> None:
        schedule, heard = Schedule(), Heard()
        async with answering(lambda _: Reply()) as served:
            load = OpenLoop(served.target, 10, heard, schedule.clock, schedule.later)
            async with load:
                load.start(served.target.post("/tasks", b"{}"), 100, 4)
                schedule.move(0.035)
                await finish(load)
        assert sorted(each.due_at for each in heard.exchanges) == pytest.approx([100, 100.01, 100.02, 100.03])
        assert load.late_seconds == pytest.approx([0, 0.025, 0.015, 0.005])
        assert load.unsent == []

    async def test_no_timer_is_finer_than_the_loop_and_none_early(self) -> None:
        schedule = Schedule()
        async with answering(lambda _: Reply()) as served:
            load = OpenLoop(served.target, 1, Heard(), schedule.clock, schedule.later)
            async with load:
                load.start(served.target.post("/tasks", b"{}"), 10_000, 100)
                assert schedule.timers[0][0] == pytest.approx(100.001)
                load.halt()

    async def test_lost_connections_are_replaced_when_something_waits(self) -> None:
        schedule, heard = Schedule(), Heard()
        answers = in_turn(Reply(None), Reply(201))
        async with answering(answers) as served:
            load = OpenLoop(served.target, 1, heard, schedule.clock, schedule.later)
            async with load:
                load.start(served.target.post("/tasks", b"{}"), 100, 3)
                await eventually(lambda: heard.exchanges)
                assert len(served.connections) == 1
                schedule.move(0.02)
                await finish(load)
            assert len(served.connections) == 2
        assert heard.statuses == {None: 1, 201: 2}

    async def test_halted_it_sends_not_even_what_is_due(self) -> None:
        schedule, heard, held = Schedule(), Heard(), asyncio.Event()
        async with answering(lambda _: Reply(held=held)) as served:
            load = OpenLoop(served.target, 1, heard, schedule.clock, schedule.later)
            async with load:
                load.start(served.target.post("/tasks", b"{}"), 100, 9)
                schedule.move(0.01)
                load.halt()
                held.set()
                await finish(load)
                schedule.move(1)
            assert len(load.unsent) == 1
        assert heard.statuses == {201: 1}
