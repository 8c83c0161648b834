"""What the proxy of the chaos run makes of the frames of PostgreSQL and AMQP, however they are cut up."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.chaos.harness.amqp_frames import AmqpConversation
from tests.chaos.harness.frames import Said
from tests.chaos.harness.postgres_frames import PostgresConversation
from tests.chaos.harness.swallowing import Swallowed, Wishes, Withholding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.harness.frames import Conversation, Mark

STARTUP = struct.pack(">II", 17, 3 << 16) + b"user\0me\0\0"
LONG = b"SELECT 1 -- " + b"x" * 100_000


def frame(kind: bytes, *parts: bytes) -> bytes:
    body = b"\0".join(parts)
    return kind + struct.pack(">I", len(body) + 4) + body


def parse(name: bytes, text: bytes) -> bytes:
    return frame(b"P", name, text, b"\0")


def run(name: bytes, values: bytes = b"") -> bytes:
    return frame(b"B", b"", name, values) + frame(b"E", b"", b"\0\0\0") + frame(b"S")


def tag(text: bytes) -> bytes:
    return frame(b"C", text, b"")


class Step(NamedTuple):
    """What a client sends, what the server answers, and what of that says something was done."""

    sent: bytes
    received: bytes
    says: tuple[str | bool, ...] = ()


CTE = b"WITH made AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT * FROM made"
LOCKING = b"WITH found AS (SELECT 1 FROM t FOR UPDATE) SELECT * FROM found"
COMPLETED = {b"N": b"...", b"1": b"", b"2": b"", b"D": b"rows" * 500}
BEFORE = b"".join(frame(kind, body) for kind, body in COMPLETED.items())


def ready(status: bytes = b"I") -> bytes:
    return frame(b"Z", status)


SAID = "CommandComplete "

POSTGRES = [
    Step(struct.pack(">II", 8, 80877103), b"N"),
    Step(STARTUP, frame(b"R", b"....") + frame(b"S", b"TimeZone", b"UTC", b"") + ready()),
    Step(parse(b"s0", CTE) + frame(b"S"), frame(b"1") + ready()),
    Step(parse(b"s1", LOCKING) + frame(b"S"), frame(b"1") + ready()),
    Step(parse(b"s2", LONG) + frame(b"S"), frame(b"1") + ready()),
    Step(run(b"s0"), BEFORE + tag(b"SELECT 1") + ready(), (f"{SAID}SELECT 1", True)),
    Step(run(b"s0"), BEFORE + tag(b"SELECT 0") + ready()),
    Step(run(b"s1"), BEFORE + tag(b"SELECT 1") + ready()),
    Step(run(b"s2", b"x" * 100_000), BEFORE + tag(b"SELECT 1") + ready()),
    Step(
        run(b"s1") + run(b"s0"),
        BEFORE + tag(b"SELECT 1") + ready() + tag(b"SELECT 2") + ready(),
        (f"{SAID}SELECT 2", True),
    ),
    # A request behind an error is skipped up to the Sync, and the next ones keep their places.
    Step(
        run(b"s0")[:-5] + run(b"s1") + run(b"s0"),
        frame(b"E", b"SERROR", b"") + ready() + tag(b"SELECT 3") + ready(),
        (f"{SAID}SELECT 3", True),
    ),
    Step(frame(b"Q", b"INSERT", b""), tag(b"INSERT 0 5") + ready(), (f"{SAID}INSERT 0 5", True)),
    Step(frame(b"Q", b"INSERT", b""), tag(b"INSERT 0 0") + ready()),
    Step(
        frame(b"Q", b"UPDATE; boom", b""),
        tag(b"UPDATE 1") + frame(b"E", b"") + ready(),
        (f"{SAID}UPDATE 1", False),
    ),
    Step(frame(b"Q", b"BEGIN", b""), tag(b"BEGIN") + ready(b"T")),
    Step(frame(b"Q", b"SELECT", b""), tag(b"SELECT 1") + ready(b"T")),
    Step(frame(b"Q", b"COMMIT", b""), tag(b"COMMIT") + ready()),
    Step(frame(b"Q", b"BEGIN", b""), tag(b"BEGIN") + ready(b"T")),
    Step(frame(b"Q", b"DELETE", b""), tag(b"DELETE 1") + ready(b"T"), (f"{SAID}DELETE 1", False)),
    Step(frame(b"Q", b"SELECT", b""), tag(b"SELECT 1") + ready(b"T")),
    Step(frame(b"Q", b"COMMIT", b""), tag(b"COMMIT") + ready(), (f"{SAID}COMMIT", True)),
    Step(frame(b"Q", b"BEGIN", b""), tag(b"BEGIN") + ready(b"T")),
    Step(frame(b"Q", b"DELETE", b""), tag(b"DELETE 1") + ready(b"T"), (f"{SAID}DELETE 1", False)),
    Step(frame(b"Q", b"boom", b""), frame(b"E", b"SERROR", b"") + ready(b"E")),
    Step(frame(b"Q", b"COMMIT", b""), tag(b"ROLLBACK") + ready()),
]


def amqp(kind: int, payload: bytes, channel: int = 1) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def ack(delivery_tag: int, *, multiple: bool = False) -> bytes:
    return amqp(1, struct.pack(">HHQB", 60, 80, delivery_tag, multiple))


DELIVERY = (
    amqp(1, struct.pack(">HH", 60, 60) + b"consumer tag and so on")
    + amqp(2, struct.pack(">HH", 60, 80) + b"properties")
    + amqp(3, ack(99) * 300)
)

AMQP = [
    Step(b"AMQP\0\0\x09\x01", amqp(1, struct.pack(">HH", 10, 10) + bytes(500), channel=0)),
    Step(amqp(8, b"", channel=0), amqp(8, b"", channel=0)),
    Step(ack(7), DELIVERY),
    Step(b"", ack(17, multiple=True) + DELIVERY, ("basic.ack 17 multiple", True)),
    Step(b"", DELIVERY + ack(18) + ack(1 << 40), ("basic.ack 18", True, f"basic.ack {1 << 40}", True)),
    Step(b"", amqp(1, struct.pack(">HHQB", 60, 120, 19, 0))),
]


def chunks(data: bytes, rng: random.Random, longest: int) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = rng.randint(1, longest)
        yield data[at : at + size]
        at += size


def told(mark: Mark) -> str | bool:
    return mark.what if isinstance(mark, Said) else mark.stands


CONVERSATIONS = [
    pytest.param(PostgresConversation, POSTGRES, id="postgres"),
    pytest.param(AmqpConversation, AMQP, id="amqp"),
]


@pytest.mark.parametrize(("conversation", "steps"), CONVERSATIONS)
@pytest.mark.parametrize("longest", [1, 2, 7, 50, 5000, 1_000_000])
def test_what_is_said_does_not_depend_on_the_chunks(
    conversation: Callable[[], Conversation], steps: list[Step], longest: int
) -> None:
    rng = random.Random(longest)
    listened = conversation()
    for number, step in enumerate(steps):
        for chunk in chunks(step.sent, rng, longest):
            listened.sent(chunk)
        said, at = [], 0
        for chunk in chunks(step.received, rng, longest):
            for mark in listened.received(chunk):
                said.append(told(mark))
                if isinstance(mark, Said):
                    begin = at + mark.start
                    assert step.received[begin : begin + 1] in {b"C", b"\x01"}
            at += len(chunk)
        assert tuple(said) == step.says, number


def test_an_encrypted_conversation_says_nothing() -> None:
    listened = PostgresConversation()
    listened.sent(struct.pack(">II", 8, 80877103))
    assert listened.received(b"S") == ()
    listened.sent(b"\x16\x03\x01....")
    assert listened.received(tag(b"INSERT 0 1") + ready()) == ()


def test_a_closed_statement_is_forgotten() -> None:
    listened = PostgresConversation()
    listened.sent(STARTUP + parse(b"s0", CTE) + parse(b"s1", CTE) + frame(b"C", b"Ss0", b""))
    assert list(listened._statements) == [b"s1"]


def test_a_cancel_request_says_nothing() -> None:
    listened = PostgresConversation()
    listened.sent(struct.pack(">IIII", 16, 80877102, 1, 2))
    assert listened.received(tag(b"INSERT 0 1") + ready()) == ()


INSERTED = tag(b"INSERT 0 1")


async def withholding() -> tuple[Withholding, Wishes, list[bytes]]:
    """One connection whose start is over, one wish, and what is let go late."""
    wishes, released = Wishes([asyncio.get_running_loop().create_future()]), list[bytes]()
    conversation = PostgresConversation()
    conversation.sent(STARTUP)
    return Withholding(conversation, wishes, released.append), wishes, released


async def test_a_reply_is_kept_back_until_it_is_certain() -> None:
    replies, wishes, released = await withholding()
    [wish] = wishes
    assert replies.passing(BEFORE + INSERTED[:3]) == (BEFORE + INSERTED[:3], False)
    assert replies.passing(INSERTED[3:] + ready()[:3]) == (b"", False)
    assert not wish.done()

    assert replies.passing(ready()[3:]) == (b"", True)

    assert await wish == Swallowed("CommandComplete INSERT 0 1", len(INSERTED) - 3 + len(ready()))
    assert not released


async def test_a_reply_that_does_not_stand_passes_whole_and_the_next_one_is_taken() -> None:
    replies, wishes, _ = await withholding()
    [wish] = wishes
    assert replies.passing(BEFORE + INSERTED) == (BEFORE, False)
    assert replies.passing(ready(b"T")) == (INSERTED + ready(b"T"), False)
    assert replies.passing(INSERTED + ready(b"T") + INSERTED) == (INSERTED + ready(b"T"), False)
    assert replies.passing(ready()) == (b"", True)
    assert wish.done()


async def test_what_is_kept_back_is_let_go_when_time_is_up() -> None:
    replies, wishes, released = await withholding()
    [wish] = wishes
    assert replies.passing(BEFORE + INSERTED) == (BEFORE, False)
    wish.cancel()
    await asyncio.sleep(0)
    assert released == [INSERTED]
    assert replies.passing(ready()) == (ready(), False)
    assert replies.passing(INSERTED + ready()) == (INSERTED + ready(), False)


async def test_the_wish_outlives_a_connection_that_is_lost_meanwhile() -> None:
    replies, wishes, _ = await withholding()
    [wish] = wishes
    replies.passing(INSERTED)
    assert not wishes
    replies.give_up()
    assert list(wishes) == [wish]
