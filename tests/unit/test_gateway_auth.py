"""Who is let in."""

from __future__ import annotations

import pytest

from gateway.settings import GatewaySettings
from tests.support.gateway import HOST, TASKS, gateway, problem

FIRST, SECOND = "first-token-0123456789", "second-token-987654321"
PATHS = [TASKS, "/api/v1/outbox", "/api/v1/dead-letters", "/api/v1/kinds"]
PUBLIC = ["/docs", "/docs/docs.js", "/schema/openapi.json"]


class TestTokens:
    @pytest.mark.parametrize("token", [FIRST, SECOND])
    async def test_each_token_opens_every_path(self, token: str) -> None:
        async with gateway(api_tokens=(FIRST, SECOND)) as api:
            for path in PATHS:
                response = await api.client.get(path, headers={"authorization": f"Bearer {token}"})
                assert response.status_code == 200

    async def test_the_scheme_may_be_in_small_letters(self) -> None:
        async with gateway(api_tokens=(FIRST,)) as api:
            response = await api.client.get(TASKS, headers={"authorization": f"bearer {FIRST}"})

        assert response.status_code == 200

    @pytest.mark.parametrize("path", PATHS)
    async def test_without_one_every_path_is_closed(self, path: str) -> None:
        async with gateway(api_tokens=(FIRST,)) as api:
            response = await api.client.get(path)

        assert problem(response) == (401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")

    @pytest.mark.parametrize("path", PUBLIC)
    async def test_what_tells_what_the_api_is_is_open(self, path: str) -> None:
        async with gateway(api_tokens=(FIRST,)) as api:
            response = await api.client.get(path)

        assert response.status_code == 200

    @pytest.mark.parametrize(
        "given",
        [
            b"",
            b"Bearer",
            b"Bearer ",
            b"Bearer wrong",
            f"Bearer {FIRST}x".encode(),
            f"Bearer {FIRST[:-1]}".encode(),
            f"Basic {FIRST}".encode(),
            FIRST.encode(),
            b"Bearer \xff\xfe",
        ],
    )
    async def test_anything_else_is_refused(self, given: bytes) -> None:
        async with gateway(api_tokens=(FIRST, SECOND)) as api:
            answer = await api.send(method="GET", headers=[HOST, (b"authorization", given)])

        assert problem(answer) == (401, "unauthorized")

    async def test_two_headers_are_refused(self) -> None:
        header = (b"authorization", f"Bearer {FIRST}".encode())
        async with gateway(api_tokens=(FIRST,)) as api:
            answer = await api.send(method="GET", headers=[HOST, header, header])

        assert problem(answer) == (401, "unauthorized")

    async def test_probes_need_none(self) -> None:
        async with gateway(api_tokens=(FIRST,)) as api:
            for path in ("/health/live", "/health/ready"):
                assert (await api.client.get(path)).status_code == 200

    async def test_a_path_that_begins_like_a_probe_is_none(self) -> None:
        async with gateway(api_tokens=(FIRST,)) as api:
            for path in ("/health/live/../../api/v1/tasks", "/health/../api/v1/tasks", "//api/v1/tasks"):
                answer = await api.send(method="GET", path=path)
                assert answer.status in {401, 404}

    async def test_with_tokens_any_host_is_served(self) -> None:
        async with gateway(api_tokens=(FIRST,)) as api:
            answer = await api.send(
                method="GET",
                headers=[(b"host", b"tasks.example"), (b"authorization", f"Bearer {FIRST}".encode())],
            )

        assert answer.status == 200


class TestWithoutTokens:
    @pytest.mark.parametrize(
        "host",
        [b"localhost", b"localhost:8000", b"127.0.0.1:8000", b"127.0.0.2", b"[::1]:8000", b"LOCALHOST:1"],
    )
    async def test_local_names_are_served(self, host: bytes) -> None:
        async with gateway() as api:
            assert (await api.send(method="GET", headers=[(b"host", host)])).status == 200

    @pytest.mark.parametrize(
        "host",
        [b"evil.example", b"localhost.evil.example", b"127.0.0.1.evil.example:8000", b"10.0.0.1", b"[::2]"],
    )
    async def test_a_name_that_resolves_to_this_machine_is_not(self, host: bytes) -> None:
        async with gateway() as api:
            answer = await api.send(method="GET", headers=[(b"host", host)])
            probe = await api.send(method="GET", path="/health/live", headers=[(b"host", host)])

        assert problem(answer) == (421, "misdirected")
        assert probe.status == 200

    @pytest.mark.parametrize("hosts", [[], [b"localhost", b"evil.example"], [b"a@localhost:x"], [b"\xff"]])
    async def test_nor_is_none_or_two_or_nonsense(self, hosts: list[bytes]) -> None:
        async with gateway() as api:
            answer = await api.send(method="GET", headers=[(b"host", host) for host in hosts])

        assert answer.status in {400, 421}

    @pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"http://127.0.0.1.evil.example"])
    async def test_a_page_of_another_site_may_not_call(self, origin: bytes) -> None:
        async with gateway() as api:
            answer = await api.send(path="/api/v1/outbox/1/retry", headers=[HOST, (b"origin", origin)])

        assert problem(answer) == (403, "foreign-origin")

    async def test_a_page_of_this_machine_may(self) -> None:
        async with gateway() as api:
            headers = [HOST, (b"origin", b"http://127.0.0.1:8000")]
            assert (await api.send(method="GET", headers=headers)).status == 200

    async def test_allow_anonymous_serves_any_host_and_page(self) -> None:
        async with gateway(allow_anonymous=True) as api:
            headers = [(b"host", b"tasks.example"), (b"origin", b"https://evil.example")]
            assert (await api.send(method="GET", headers=headers)).status == 200


def test_settings_do_not_show_tokens() -> None:
    assert FIRST not in repr(GatewaySettings(api_tokens=(FIRST,)))
