from uuid import UUID

import pytest

from pipeline.references import Undecodable, decode, encode
from storage.model import Reference

FIRST = Reference(UUID("01980000-0000-7000-8000-000000000001"), 1)
SECOND = Reference(UUID("01980000-0000-7000-8000-000000000002"), 2_147_483_647)


def test_references_come_back_as_they_were_packed() -> None:
    assert decode(encode([FIRST, SECOND])) == [FIRST, SECOND]
    assert decode(encode([])) == []


def test_the_wire_format_is_the_one_of_messages_already_in_queues() -> None:
    assert encode([FIRST]) == b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001",1]]}'


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    assert decode(encode([FIRST]).replace(b'{"v":1', b'{"v":1,"added":{"later":[]}')) == [FIRST]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", "truncated"),
        (b"\xff\xfe", "malformed|invalid"),
        (b'{"v":1,"tasks":[["\xff",1]]}', "Invalid UUID"),
        (b"[" * 100_000, "Expected|recursion"),
        (b'{"v":1,"x":' + b"[" * 100_000, "recursion|truncated"),
        (b"null", "Expected `object`"),
        (b'{"v":1}', "missing required field `tasks`"),
        (b'{"tasks":[]}', "missing required field `v`"),
        (b'{"v":"1","tasks":[]}', "Expected `int`"),
        (b'{"v":2,"tasks":[]}', "version 2, this worker reads version 1"),
        (b'{"v":1,"tasks":[["no-uuid",1]]}', "Invalid UUID"),
        (b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001"]]}', "length 2"),
        (b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001",1.5]]}', "Expected `int`"),
        (b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001",true]]}', "Expected `int`"),
        (b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001",1,2]]}', "length 2"),
        (b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001",0]]}', "Expected `int` >= 1"),
        (b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001",2147483648]]}', "<= 2147483647"),
        (b'{"v":1,"tasks":[["01980000-0000-7000-8000-000000000001",1e400]]}', "Expected `int`|out of range"),
    ],
)
def test_a_message_nobody_can_read_says_why(body: bytes, names: str) -> None:
    with pytest.raises(Undecodable, match=names):
        decode(body)
