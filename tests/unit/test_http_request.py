"""The kind http.request: what may be asked, what is sent, and what becomes of each answer."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio

from pipeline.handlers import Context, PayloadInvalid, Permanent, RetryLater, load
from pipeline.handlers.http_request import LARGEST_BODY, Endpoint, http_request, retry_after
from pipeline.handlers.outbound import AddressRefused, NoAnswer
from pipeline.handlers.runners import OnLoop
from tests.support import endpoint as server
from tests.support.endpoint import answer
from tests.support.gateway import gateway
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONTEXT = Context(task_id=uuid4(), kind="http.request")
REQUEST = http_request(allow_private_addresses=True)


@pytest_asyncio.fixture
async def there() -> AsyncIterator[server.Endpoint]:
    async with server.endpoint() as opened:
        yield opened


async def call(there: server.Endpoint, path: str = "/", **payload: Any) -> Any:
    body = json.dumps({"url": there.url + path, **payload}).encode()
    return json.loads(await OnLoop().run(REQUEST, body, CONTEXT))


def refused(**payload: Any) -> PayloadInvalid:
    with pytest.raises(PayloadInvalid) as caught:
        REQUEST.decode(json.dumps({"url": "https://example.org", **payload}).encode())
    return caught.value


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "parts", "authority"),
        [
            ("http://example.org", ("http", "example.org", None, "/"), "example.org"),
            ("HTTPS://Example.ORG:8443/A?b=%20#"[:-1], ("https", "example.org", 8443, "/A?b=%20"), ":8443"),
            ("http://a_b-c:80?q[]=1&r={x|y}", ("http", "a_b-c", 80, "/?q[]=1&r={x|y}"), "a_b-c:80"),
            ("http://127.0.0.1/", ("http", "127.0.0.1", None, "/"), "127.0.0.1"),
            ("http://[2001:DB8::1]:8/", ("http", "2001:db8::1", 8, "/"), "[2001:db8::1]:8"),
            ("https://xn--bcher-kva.example/@/:", ("https", "xn--bcher-kva.example", None, "/@/:"), "xn--b"),
            ("http://1.example/", ("http", "1.example", None, "/"), "1.example"),
        ],
    )
    def test_is_read_in_its_parts(self, url: str, parts: tuple[Any, ...], authority: str) -> None:
        assert Endpoint.of(url) == parts
        assert authority in Endpoint.of(url).authority

    @pytest.mark.parametrize(
        "host",
        [
            # Notations of 127.0.0.1 that resolvers know, and URL standards turn into it.
            *("2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0x7f.1", "127.1", "127.0.1", "0"),
            *("127.0.0.1.", "localhost.", "127.0.0.01", "0x7f.0.0.0x1", "127.0.0.1.0x", "256.1.1.1"),
            *(
                "\uff11\uff12\uff17.0.0.1",
                "127。0。0。1",
                "①②⑦.0.0.1",
                "ⓛocalhost",
                "bücher.example",
                "\u017f.example",
            ),
            *("%31%32%37.0.0.1", "127.0.0.1%00.example", "localhost%2e", "127.0.0.1%"),
            *("[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1", "::1", "[127.0.0.1]", "[::1].", "[]", "[::g]"),
            *("", ".", "a..b", "-a", "a-", "a" * 64, ".".join(["a" * 63] * 4), "a b", "a\tb", "a\n", "a\\b"),
            *(
                "user@a",
                "user:secret@a",
                "a@",
                "example.org\\@127.0.0.1",
                "a#@b",
                "a:0",
                "a:65536",
                "a:",
                "a:8a",
            ),
        ],
    )
    def test_a_host_in_a_notation_that_may_be_misread_is_refused(self, host: str) -> None:
        assert "url: allowed:" in refused(url=f"http://{host}").message
        assert "url: allowed:" in refused(url=f"http://{host}/path").message

    @pytest.mark.parametrize(
        "url",
        [
            *("", "example.org", "//example.org", "ftp://example.org", "file:///etc/passwd", "gopher://a"),
            *(
                "http:/a",
                "http:a",
                "http:///a",
                " http://a",
                "http://a ",
                "http://a/b c",
                "http://a/\r\nX: y",
            ),
            *(
                "http://a/#b",
                "http://a/ü",
                "http://a/b\\c",
                "http://a/\x00",
                "http\u017f://a",
                "http+unix://a",
            ),
        ],
    )
    def test_what_is_no_plain_http_url_is_refused(self, url: str) -> None:
        assert "url: allowed:" in refused(url=url).message


class TestPayload:
    @pytest.mark.parametrize(
        "name",
        [
            *("Host", "host", "CONNECTION", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "TE"),
            *("Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Expect", "Accept-Encoding"),
        ],
    )
    def test_headers_of_the_connection_are_refused(self, name: str) -> None:
        assert name.lower() in refused(headers={name: "x"}).message

    @pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\n", "ü", "a" * 101])
    def test_a_name_that_is_none_is_refused(self, name: str) -> None:
        assert refused(headers={name: "x"}).path.endswith("$.headers")

    @pytest.mark.parametrize("value", ["a\r\nHost: b", "a\n", "\ra", " a", "a ", "a\x00", "ü", "a" * 8_193])
    def test_a_value_that_is_none_is_refused(self, value: str) -> None:
        assert refused(headers={"X-A": value}).path == "$.headers[...]"

    def test_headers_are_bounded_and_named_once(self) -> None:
        assert refused(headers={f"X-{n}": "" for n in range(51)}).path == "$.headers"
        assert "16384 characters" in refused(headers={f"X-{n}": "a" * 8_190 for n in range(2)}).message
        assert "twice" in refused(headers={"X-A": "1", "x-a": "2"}).message

    @pytest.mark.parametrize(
        "payload",
        [
            *({"method": "TRACE"}, {"method": "get"}, {"method": "CONNECT"}, {"timeout_seconds": 0}),
            *({"timeout_seconds": 86_401}, {"follow_redirects": True}, {"url": "http://a/" + "b" * 4_096}),
            *({"method": "GET", "body": {}}, {"method": "HEAD", "body": "x"}),
        ],
    )
    def test_what_is_out_of_bounds_is_refused(self, payload: dict[str, Any]) -> None:
        refused(**payload)

    @pytest.mark.parametrize("body", [b'"\xff"', b'["\xff"]', rb'"\ud800"', b"{", b"NaN"])
    def test_a_body_that_is_no_json_is_refused(self, body: bytes) -> None:
        with pytest.raises(PayloadInvalid):
            REQUEST.decode(b'{"url":"http://a","body":' + body + b"}")

    async def test_it_is_among_the_kinds_with_its_schema(self) -> None:
        async with gateway() as api:
            kinds = {kind["kind"]: kind for kind in (await api.client.get("/api/v1/kinds")).json()["items"]}
        schema = kinds["http.request"]["payload_schema"]["$defs"]["Request"]
        assert schema["required"] == ["url"]
        assert set(schema["properties"]) == {"url", "method", "headers", "body", "timeout_seconds"}


class TestSent:
    async def test_a_json_body_goes_byte_for_byte(self, there: server.Endpoint) -> None:
        body = (
            b'{"url":"' + there.url.encode() + b'/a?b=c","body": {"n": 0.10, "big": 1e999, "t":"\xc3\xa4"} }'
        )
        await OnLoop().run(REQUEST, body, CONTEXT)
        [got] = there.received
        assert (got.line, got.body) == (
            "POST /a?b=c HTTP/1.1",
            b'{"n": 0.10, "big": 1e999, "t":"\xc3\xa4"}',
        )
        assert dict(got.headers) == {
            "host": f"127.0.0.1:{there.port}",
            "accept-encoding": "identity",
            "connection": "close",
            "accept": "*/*",
            "user-agent": "baton",
            "idempotency-key": CONTEXT.idempotency_key,
            "content-type": "application/json",
            "content-length": str(len(got.body)),
        }
        assert len(got.headers) == 8

    async def test_a_text_goes_as_it_is(self, there: server.Endpoint) -> None:
        await call(there, method="PUT", body='<a>"ä"\n</a>', headers={"content-type": "text/xml"})
        [got] = there.received
        assert (got.body, got["content-type"]) == ('<a>"ä"\n</a>'.encode(), "text/xml")

    async def test_a_text_is_plain_unless_said(self, there: server.Endpoint) -> None:
        await call(there, body="a")
        assert there.received[0]["content-type"] == "text/plain; charset=utf-8"

    @pytest.mark.parametrize(
        ("method", "length"), [("POST", ["0"]), ("PATCH", ["0"]), ("GET", []), ("DELETE", []), ("HEAD", [])]
    )
    async def test_no_body(self, there: server.Endpoint, method: str, length: list[str]) -> None:
        await call(there, method=method, body=None)
        [got] = there.received
        assert [value for name, value in got.headers if name == "content-length"] == length
        assert "content-type" not in dict(got.headers)

    async def test_headers_given_stand_instead_of_ours(self, there: server.Endpoint) -> None:
        await call(there, headers={"IDEMPOTENCY-KEY": "order-1", "user-agent": "shop", "X-Empty": ""})
        [got] = there.received
        assert (got["idempotency-key"], got["user-agent"], got["x-empty"]) == ("order-1", "shop", "")

    async def test_a_proxy_of_the_environment_is_not_used(
        self, there: server.Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert (await call(there))["status"] == 200


class TestAnswer:
    async def test_success_is_kept_with_a_few_headers(self, there: server.Endpoint) -> None:
        there.answers = [
            answer(201, "grün".encode(), "Location: /1", "Set-Cookie: a=b", "LINK: <x>", "Link: <y>")
        ]
        assert await call(there) == {
            "status": 201,
            "headers": {"link": "<x>, <y>", "location": "/1"},
            "body": "grün",
            "body_encoding": "utf-8",
            "truncated": False,
        }

    @pytest.mark.parametrize("body", [b"\x89PNG\xff", b"a\0b", b"\xc3"])
    async def test_what_is_no_text_is_in_base64(self, there: server.Endpoint, body: bytes) -> None:
        there.answers = [answer(200, body)]
        result = await call(there)
        assert (result["body_encoding"], base64.b64decode(result["body"])) == ("base64", body)

    async def test_a_body_of_the_limit_is_whole_and_one_above_is_cut(self, there: server.Endpoint) -> None:
        there.answers = [answer(200, b"a" * LARGEST_BODY), answer(200, b"a" * (LARGEST_BODY + 1))]
        whole, cut = await call(there), await call(there)
        assert (len(whole["body"]), whole["truncated"]) == (LARGEST_BODY, False)
        assert (len(cut["body"]), cut["truncated"]) == (LARGEST_BODY, True)

    async def test_a_cut_through_a_character_leaves_text(self, there: server.Endpoint) -> None:
        there.answers = [answer(200, b"a" + "ä".encode() * LARGEST_BODY)]
        result = await call(there)
        assert (result["body_encoding"], len(result["body"])) == ("utf-8", LARGEST_BODY // 2)

    async def test_an_endless_body_is_read_no_further_than_needed(self, there: server.Endpoint) -> None:
        there.answers = [b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 200_000]
        assert (await call(there, timeout_seconds=20))["truncated"]
        await eventually(lambda: there.open == 0)

    async def test_a_compressed_body_is_not_unpacked(self, there: server.Endpoint) -> None:
        there.answers = [answer(200, b"\x1f\x8b\x08\xff", "Content-Encoding: gzip")]
        result = await call(there)
        assert (result["headers"], result["body"]) == ({"content-encoding": "gzip"}, "H4sI/w==")

    @pytest.mark.parametrize("status", [204, 205])
    async def test_an_answer_without_a_body_is_one(self, there: server.Endpoint, status: int) -> None:
        there.answers = [f"HTTP/1.1 {status} \r\nContent-Length: 0\r\n\r\n".encode()]
        assert (await call(there))["body"] == ""

    async def test_the_connection_is_closed(self, there: server.Endpoint) -> None:
        await call(there)
        await eventually(lambda: there.open == 0)

    @pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
    async def test_a_redirect_is_permanent_and_tells_where_to(
        self, there: server.Endpoint, status: int
    ) -> None:
        there.answers = [answer(status, b"", "Location: http://127.0.0.1:1/x")]
        with pytest.raises(Permanent, match=rf"answered {status} and points to http://127.0.0.1:1/x; redir"):
            await call(there)
        assert len(there.received) == 1

    @pytest.mark.parametrize("status", [400, 401, 404, 409, 410, 422, 499])
    async def test_a_refusal_is_permanent_and_quotes_the_body(
        self, there: server.Endpoint, status: int
    ) -> None:
        there.answers = [answer(status, b"no such\xff order", "Retry-After: 5")]
        with pytest.raises(Permanent, match=f"^the endpoint answered {status}: no such\ufffd order$"):
            await call(there)

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599, 600, 999])
    async def test_what_may_pass_is_an_ordinary_failure(self, there: server.Endpoint, status: int) -> None:
        there.answers = [answer(status, b"oops")]
        with pytest.raises(Exception, match=f"^the endpoint answered {status}: oops$") as caught:
            await call(there)
        assert not isinstance(caught.value, Permanent | RetryLater)

    @pytest.mark.parametrize("status", [429, 503])
    async def test_an_endpoint_that_names_the_time_is_called_then(
        self, there: server.Endpoint, status: int
    ) -> None:
        there.answers = [answer(status, b"", "Retry-After: 17")]
        with pytest.raises(RetryLater, match=f"the endpoint answered {status}") as caught:
            await call(there)
        assert caught.value.seconds == 17

    async def test_an_endpoint_that_names_a_date_is_called_then_by_its_clock(
        self, there: server.Endpoint
    ) -> None:
        dates = ("Date: Sat, 01 Jan 2000 00:00:10 GMT", "Retry-After: Sat, 01 Jan 2000 00:01:10 GMT")
        there.answers = [answer(503, b"", *dates)]
        with pytest.raises(RetryLater) as caught:
            await call(there)
        assert caught.value.seconds == 60

    @pytest.mark.parametrize(
        "raw",
        [
            *(b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b"SSH-2.0-x\r\n\r\n"),
            *(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000, b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ],
    )
    async def test_no_whole_answer_is_an_ordinary_failure(self, there: server.Endpoint, raw: bytes) -> None:
        there.answers = [raw]
        there.hang_up = True
        with pytest.raises(NoAnswer, match=r"127\.0\.0\.1: \w+: \w"):
            await call(there)

    @pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"])
    async def test_too_late_is_an_ordinary_failure(self, there: server.Endpoint, raw: bytes) -> None:
        there.answers = [raw]
        with pytest.raises(NoAnswer, match=r"127\.0\.0\.1: not done after 0\.2 s"):
            await call(there, timeout_seconds=0.2)
        await eventually(lambda: there.open == 0)

    async def test_a_closed_port_is_an_ordinary_failure(self) -> None:
        async with server.endpoint() as gone:
            pass
        with pytest.raises(NoAnswer, match="ConnectionRefusedError"):
            await call(gone)

    async def test_without_leave_this_machine_is_not_called(self, there: server.Endpoint) -> None:
        guarded = load([])["http.request"]
        with pytest.raises(AddressRefused, match=r"^127\.0\.0\.1 has an address that is not public"):
            await OnLoop().run(guarded, msgspec.json.encode({"url": there.url}), CONTEXT)
        assert there.received == []


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("0", 1), ("1", 1), ("120", 120), ("86401", 86_400), ("9" * 12, 86_400)],
    )
    def test_seconds_are_bounded(self, value: str, seconds: float) -> None:
        assert retry_after(value) == seconds

    @pytest.mark.parametrize(("wait", "low", "high"), [(100, 90, 100), (-100, 1, 1), (10**6, 86_400, 86_400)])
    def test_a_date_is_a_wait_from_now(self, wait: int, low: float, high: float) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=wait), usegmt=True)
        seconds = retry_after(date)
        assert seconds is not None
        assert low <= seconds <= high

    def test_a_date_counts_from_the_date_of_its_answer(self) -> None:
        # Whose clock is wrong, theirs or ours, then makes no difference.
        assert retry_after("Sat, 01 Jan 2000 00:00:40 GMT", "Sat, 01 Jan 2000 00:00:10 GMT") == 30

    @pytest.mark.parametrize("date", ["", "yesterday"])
    def test_without_that_it_counts_from_now(self, date: str) -> None:
        assert retry_after("Sat, 01 Jan 2000 00:00:40 GMT", date) == 1

    def test_a_date_without_a_zone_is_in_utc(self) -> None:
        assert retry_after("Fri, 31 Dec 9999 23:59:59 -0000") == 86_400

    @pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "٣", "1e3", "9" * 13, "Fri, 99 Foo 99999"])
    def test_anything_else_is_none(self, value: str) -> None:
        assert retry_after(value) is None
