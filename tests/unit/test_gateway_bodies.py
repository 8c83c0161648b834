"""Bodies that are no JSON, too much, too late, or hold what cannot be kept."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from gateway.bodies import MOST_BYTES, MOST_DEPTH
from tests.support.gateway import HOST, JSON, TASKS, Gateway, faults, gateway, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Gateway]:
    async with gateway() as opened:
        yield opened


def echo(payload: bytes) -> bytes:
    return b'{"kind":"echo","payload":' + payload + b"}"


class TestHeaders:
    @pytest.mark.parametrize(
        "media_type",
        [b"application/json", b"Application/JSON; charset=UTF-8", b'application/json;charset="utf-8"'],
    )
    async def test_json_is_taken(self, api: Gateway, media_type: bytes) -> None:
        answer = await api.send(echo(b"1"), headers=[HOST, (b"content-type", media_type)])

        assert answer.status == 201

    @pytest.mark.parametrize(
        "media_type",
        [
            None,
            b"",
            b"text/plain",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data; boundary=x",
            b"application/json; charset=latin-1",
            b"application/json, text/plain",
            b"application/problem+json",
        ],
    )
    async def test_any_other_type_is_refused(self, api: Gateway, media_type: bytes | None) -> None:
        headers = [HOST] if media_type is None else [HOST, (b"content-type", media_type)]

        answer = await api.send(echo(b"1"), headers=headers)

        assert problem(answer) == (415, "unsupported-media-type")

    async def test_two_types_are_refused(self, api: Gateway) -> None:
        assert problem(await api.send(echo(b"1"), headers=[HOST, JSON, JSON])) == (400, "bad-request")

    async def test_a_compressed_body_is_refused(self, api: Gateway) -> None:
        answer = await api.send(echo(b"1"), headers=[HOST, JSON, (b"content-encoding", b"gzip")])

        assert problem(answer) == (415, "unsupported-media-type")

    async def test_the_identity_encoding_is_none(self, api: Gateway) -> None:
        answer = await api.send(echo(b"1"), headers=[HOST, JSON, (b"content-encoding", b"identity")])

        assert answer.status == 201

    @pytest.mark.parametrize("length", [b"-1", b"x", b"", b"1e3", b"+5", b"9" * 19])
    async def test_a_length_that_is_no_number_is_refused(self, api: Gateway, length: bytes) -> None:
        answer = await api.send(echo(b"1"), headers=[HOST, JSON, (b"content-length", length)])

        assert problem(answer) == (400, "bad-request")


class TestSize:
    async def test_the_largest_body_is_taken(self, api: Gateway) -> None:
        body = echo(b'"%s"' % (b"x" * (MOST_BYTES - len(echo(b'""')))))

        assert len(body) == MOST_BYTES
        assert (await api.send(body)).status == 201

    @pytest.mark.parametrize("chunks", [1, 8])
    async def test_one_byte_more_is_refused(self, api: Gateway, chunks: int) -> None:
        body = b"x" * (MOST_BYTES + 1)
        size = -(-len(body) // chunks)
        parts = [body[start : start + size] for start in range(0, len(body), size)]

        answer = await api.send(*parts)

        assert problem(answer) == (413, "body-too-large")
        assert answer.headers["connection"] == "close"

    async def test_a_length_too_large_is_refused_unread(self, api: Gateway) -> None:
        answer = await api.send(headers=[HOST, JSON, (b"content-length", b"262145")], hangs_up=True)

        assert problem(answer) == (413, "body-too-large")

    async def test_a_body_in_many_pieces_is_put_together(self, api: Gateway) -> None:
        answer = await api.send(*(bytes([byte]) for byte in echo(b'{"a":1}')))

        assert answer.json()["payload"] == {"a": 1}


class TestClientGone:
    async def test_a_client_that_leaves_in_the_middle_is_no_failure(
        self, api: Gateway, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        answer = await api.send(b'{"kind":', hangs_up=True)

        assert problem(answer) == (499, "client-gone")
        assert not caplog.records
        assert capsys.readouterr() == ("", "")


class TestSyntax:
    @pytest.mark.parametrize(
        ("body", "byte"),
        [
            (b"", 0),
            (b"  ", 2),
            (b'{"kind":"echo",', 15),
            (b'{"kind":"echo",}', 15),
            (b'{"kind":"echo"} x', 17),
            (b"{'kind':'echo'}", 1),
            (b'\xef\xbb\xbf{"kind":"echo"}', 0),
            (b'{"kind":"e\x00"}', 10),
            (b'{"kind":"e\xff"}', 10),
            (b'{"kind":"echo","payload":"\xff"}', 26),
            (b'{"kind":"echo","payload":NaN}', 25),
            (b'{"kind":"echo","payload":[1,Infinity]}', 28),
            (b'{"kind":"echo","payload":01}', 26),
            (b'{"kind":"echo","payload":"\xed\xa0\x80"}', 26),
        ],
    )
    async def test_what_is_no_json_is_refused_with_the_place(
        self, api: Gateway, body: bytes, byte: int
    ) -> None:
        answer = await api.send(body)

        assert problem(answer) == (400, "malformed-json")
        assert f"(byte {byte})" in answer.json()["detail"]


class TestDepth:
    @pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
    async def test_64_levels_are_taken_and_65_are_not(
        self, api: Gateway, opening: bytes, closing: bytes
    ) -> None:
        def nested(levels: int) -> bytes:  # the body itself is the first level
            return echo(opening * (levels - 1) + b"1" + closing * (levels - 1))

        assert (await api.send(nested(MOST_DEPTH))).status == 201
        assert problem(await api.send(nested(MOST_DEPTH + 1))) == (400, "too-deep")

    async def test_64_levels_beside_others_are_taken_and_65_are_not(self, api: Gateway) -> None:
        def nested(levels: int) -> bytes:
            return echo(b"[[],[]," + b"[" * (levels - 2) + b"]" * (levels - 2) + b"]")

        assert (await api.send(nested(MOST_DEPTH))).status == 201
        assert problem(await api.send(nested(MOST_DEPTH + 1))) == (400, "too-deep")

    async def test_a_hundred_thousand_levels_are_refused(self, api: Gateway) -> None:
        assert problem(await api.send(echo(b"[" * 100_000))) == (400, "too-deep")

    async def test_many_brackets_side_by_side_or_in_texts_are_no_depth(self, api: Gateway) -> None:
        payload: list[object] = [[{}] for _ in range(100)] + ["[" * 100, '\\"[[' * 50, "{\\"]

        answer = await api.send(echo(json.dumps(payload).encode()))

        assert answer.status == 201
        assert answer.json()["payload"] == payload

    async def test_an_unclosed_text_full_of_quotes_costs_no_time(self, api: Gateway) -> None:
        body = b"[" * 65 + b'"' + b'\\"' * 100_000

        begun = time.thread_time()
        answer = await api.send(body)

        assert problem(answer) == (400, "too-deep")
        assert time.thread_time() - begun < 1.0


class TestValues:
    @pytest.mark.parametrize(
        ("payload", "field"),
        [
            (rb'"\u0000"', "payload"),
            (rb'{"a":[1,{"b":"x\u0000"}]}', "payload.a[1].b"),
            (rb'"\ud800"', "payload"),
            (rb'"\udc00\ud800"', "payload"),
            (rb'"\uD83D"', "payload"),
            (rb'["\ud83d\u0041"]', "payload[0]"),
            (rb'{"k":{"\u0000":1}}', "payload.k"),
            (rb'{"a":"\ud800","a":1}', "payload.a"),
            (b"9223372036854775808", "payload"),
            (b'{"n":[-9223372036854775809]}', "payload.n[0]"),
            (b'{"n":%b}' % (b"1" * 5000), "payload.n"),
            (b'{"n":18446744073709551616,"n":1}', "payload.n"),
        ],
    )
    async def test_what_cannot_be_kept_is_refused_by_name(
        self, api: Gateway, payload: bytes, field: str
    ) -> None:
        answer = await api.send(echo(payload))

        assert problem(answer) == (422, "invalid")
        assert list(faults(answer)) == [field]

    @pytest.mark.parametrize("field", ["kind", "name", "description"])
    async def test_nor_is_it_taken_in_another_field(self, api: Gateway, field: str) -> None:
        for text in ("\0", "\ud800"):
            answer = await api.send(json.dumps({"kind": "echo", field: text}).encode())
            assert problem(answer) == (422, "invalid")
            assert list(faults(answer)) == [field]

    async def test_nor_in_a_tag_or_a_reason(self, api: Gateway) -> None:
        tagged = await api.send(rb'{"kind":"echo","tags":["a","\u0000"]}')
        replay = await api.send(
            rb'{"reason":"\u0000"}', path=f"{TASKS}/01890a5d-ac96-774b-bcce-b302099a8057/replay"
        )

        assert list(faults(tagged)) == ["tags[1]"]
        assert list(faults(replay)) == ["reason"]

    async def test_every_fault_is_told_at_once(self, api: Gateway) -> None:
        answer = await api.send(echo(rb'["\u0000",9223372036854775808,"\udfff"]'))

        assert list(faults(answer)) == ["payload[0]", "payload[1]", "payload[2]"]

    @pytest.mark.parametrize(
        "payload",
        [
            rb'"\ud83d\ude00"',
            rb'"\\u0000 \\ud800"',
            rb'"\\\\u0000"',
            b'"12345678901234567890"',
            b"[9223372036854775807,-9223372036854775808]",
            b"0.12345678901234567890",
            b"1e300",
            '"Ünï 😀"'.encode(),
            rb'"\u043f\u0440\u0438"',
        ],
    )
    async def test_what_only_looks_like_it_is_taken(self, api: Gateway, payload: bytes) -> None:
        answer = await api.send(echo(payload))

        assert answer.status == 201
        assert b'"payload":' + payload in answer.body


def _scope() -> dict[str, object]:
    return {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": TASKS,
        "raw_path": TASKS.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [HOST, JSON],
        "state": {},
    }
