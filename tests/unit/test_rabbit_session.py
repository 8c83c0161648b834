"""How settlements are put into frames: what the broker makes of them is the contract suite's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pamqp.frame
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from pipeline.broker.rabbit.session import Session

if TYPE_CHECKING:
    from pipeline.broker.rabbit.session import RabbitDelivery


class Channel:
    """As much of aiormq's channel as a session touches."""

    def __init__(self, room: int = 10) -> None:
        self.number = 1
        self.is_closed = False
        self.connection = SimpleNamespace(channels={1: self}, write_queue=asyncio.Queue[Any](room))

    def written(self) -> list[tuple[str, int | None, bool | None]]:
        """Name, tag, and `multiple` of an ack or `requeue` of a refusal, of each frame."""
        queue = self.connection.write_queue
        frames: list[tuple[str, int | None, bool | None]] = []
        while not queue.empty():
            payload = queue.get_nowait().payload
            while payload:
                size, _, unmarshalled = pamqp.frame.unmarshal(payload)
                payload = payload[size:]
                frame = cast("Basic.Ack | Basic.Reject", unmarshalled)
                flag = frame.multiple if isinstance(frame, Basic.Ack) else frame.requeue
                frames.append((type(frame).__name__, frame.delivery_tag, flag))
        return frames


def session_on(channel: Channel) -> Session:
    return Session("tasks.high", cast("Any", None), cast("Any", channel))


def received(session: Session, *tags: int) -> list[RabbitDelivery]:
    return [
        session.receive(DeliveredMessage(Basic.Deliver("c", tag), ContentHeader(), b"", cast("Any", None)))
        for tag in tags
    ]


async def turn() -> None:
    await asyncio.sleep(0)


async def test_all_that_is_acked_in_one_turn_goes_in_one_frame() -> None:
    channel = Channel()
    deliveries = received(session_on(channel), *range(1, 101))

    for delivery in deliveries:
        await delivery.ack()
    assert channel.written() == []
    await turn()

    assert channel.written() == [("Ack", 100, True)]


async def test_an_ack_never_covers_what_is_still_held() -> None:
    channel = Channel()
    first, second, third, fourth = received(session_on(channel), 1, 2, 3, 4)

    for delivery in (fourth, first, third):
        await delivery.ack()
    await turn()
    assert set(channel.written()) == {("Ack", 1, True), ("Ack", 3, False), ("Ack", 4, False)}

    await second.ack()
    await turn()
    assert channel.written() == [("Ack", 2, True)]


async def test_refusals_go_before_the_ack_that_would_cover_them() -> None:
    channel = Channel()
    first, second, third = received(session_on(channel), 1, 2, 3)

    await third.ack()
    await first.nack()
    await second.reject()
    await turn()

    assert channel.written() == [("Reject", 1, True), ("Reject", 2, False), ("Ack", 3, True)]


async def test_nothing_is_written_to_a_channel_whose_end_the_broker_has_told() -> None:
    channel = Channel()
    session = session_on(channel)
    (delivery,) = received(session, 1)

    channel.connection.channels.clear()
    await delivery.ack()
    await turn()

    assert channel.written() == []
    assert not session.held


async def test_settlements_wait_for_room_without_holding_anybody_up() -> None:
    channel = Channel(room=1)
    first, second = received(session_on(channel), 1, 2)
    await first.ack()
    await turn()
    await second.ack()
    await turn()

    assert channel.written() == [("Ack", 1, True)]
    async with asyncio.timeout(5):
        while channel.connection.write_queue.empty():
            await turn()
    assert channel.written() == [("Ack", 2, True)]
