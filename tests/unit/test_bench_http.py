from __future__ import annotations

import ssl

import pytest
import trustme

from pipeline.bench.http import Target
from pipeline.bench.load import ClosedLoop, Exchange
from tests.support.answering import Reply, Request, answering


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host", Target(host="host", port=80)),
        ("https://host/", Target(host="host", port=443, tls=True)),
        ("http://127.0.0.1:8000/base/", Target(host="127.0.0.1", port=8000, base="/base")),
        ("http://[::1]:8000", Target(host="::1", port=8000)),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: Target) -> None:
    assert Target.of(url) == expected


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "http://host:port"])
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|Port"):
        Target.of(url)


def test_a_request_is_written_with_its_token() -> None:
    target = Target.of("http://[::1]:8000/base", "sesame")
    assert target.post("/tasks?wait=1", b"{}") == (
        b"POST /base/api/v1/tasks?wait=1 HTTP/1.1\r\nHost: [::1]:8000\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nAuthorization: Bearer sesame\r\n\r\n{}"
    )
    assert "sesame" not in repr(target)


async def test_it_speaks_https(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    asked: list[Request] = []
    found: list[Exchange] = []

    def answer(request: Request) -> Reply:
        asked.append(request)
        return Reply(201, "created")

    with authority.cert_pem.tempfile() as certificates:
        monkeypatch.setenv("SSL_CERT_FILE", certificates)
        async with answering(answer, tls=context) as served:
            load = ClosedLoop(served.target, 1, lambda exchange, _: found.append(exchange))
            async with load:
                load.start(iter([served.target.post("/tasks", b'{"n":1}')]))
                assert await load.quiet(10)
    assert [each.status for each in found] == [201]
    assert [(each.method, each.url, each.body) for each in asked] == [("POST", "/api/v1/tasks", b'{"n":1}')]
