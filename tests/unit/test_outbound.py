"""Addresses: which are public, and that none but a checked one is connected to."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from pipeline.handlers.http_request import Endpoint
from pipeline.handlers.outbound import AddressRefused, Client, NoAnswer, is_public
from tests.support import endpoint as server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.handlers.outbound import Response

NOT_PUBLIC = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
    *("192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.192"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.88.99.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:8.8.8.8"),
    *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2002:808:808::", "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:db8::1"),
    *("3fff::1", "100::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1"),
    *("ff02::1", "ff0e::1", "2606:4700::1%eth0", "4000::1"),
]
PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "126.0.0.1"),
    *("223.255.255.255", "192.0.1.1", "198.17.0.1", "198.20.0.1", "2606:4700:4700::1111", "2a00::1"),
    *("2001:200::1", "2001:4860:4860::8888", "2003::1", "3ffe::1"),
]


class Names:
    """A resolver that gives what a test says, and remembers what it was asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.addresses


async def get(client: Client, url: str) -> Response:
    return await client.exchange("GET", Endpoint.of(url), [], None, timeout_seconds=10, most_bytes=100)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0x7f.1", "127.1", "0"),
        *(
            "0.0.0.0",
            "\uff11\uff12\uff17.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:7f00:1",
            "64:ff9b::7f00:1",
            "::",
        ),
        "fe80::1%1",
    ],
)
async def test_every_notation_the_system_resolves_comes_to_an_address_that_is_refused(host: str) -> None:
    # The second line of defence: most of these are no URL to begin with.
    with pytest.raises(AddressRefused, match="that is not public"):
        await Client()._backend.connect_tcp(host, 1)


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["127.0.0.1", "::1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["2a00::1", "::1"],
    ],
)
async def test_one_private_address_among_several_is_enough_to_refuse(addresses: list[str]) -> None:
    with pytest.raises(
        AddressRefused, match=r"^rebind\.example has an address that is not public; .*HTTP_ALLOW"
    ):
        await get(Client(look_up=Names(*addresses)), "http://rebind.example/")


async def test_a_name_is_looked_up_once_and_its_address_is_what_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with server.endpoint() as there:
        names = Names("127.0.0.1")
        client = Client(allow_private=True, look_up=names)
        monkeypatch.setattr(socket, "getaddrinfo", None)
        assert (await get(client, f"http://shop.example:{there.port}/")).status == 200
        assert names.asked == ["shop.example"]
        assert there.received[0]["host"] == f"shop.example:{there.port}"


async def test_an_address_of_ipv6_is_looked_up_bare_and_told_in_brackets() -> None:
    async with server.endpoint() as there:
        names = Names("127.0.0.1")
        await get(Client(allow_private=True, look_up=names), f"http://[2001:DB8::1]:{there.port}/")
        assert names.asked == ["2001:db8::1"]
        assert there.received[0]["host"] == f"[2001:db8::1]:{there.port}"


async def test_the_next_address_is_tried_where_one_is_silent() -> None:
    async with server.endpoint() as there:
        client = Client(allow_private=True, look_up=Names("127.0.0.2", "::1", "127.0.0.1"))
        assert (await get(client, f"http://shop.example:{there.port}/")).status == 200


async def test_a_failure_names_every_address_that_was_tried() -> None:
    async with server.endpoint() as gone:
        pass
    client = Client(allow_private=True, look_up=Names("127.0.0.2", "127.0.0.1"))
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.2: .*; 127\.0\.0\.1: ConnectionRefusedError"):
        await get(client, f"http://shop.example:{gone.port}/")


@pytest.mark.parametrize("addresses", [[], None])
async def test_a_name_without_an_address_is_an_ordinary_failure(addresses: list[str] | None) -> None:
    async def look_up(_host: str, _port: int) -> Sequence[str]:
        if addresses is None:
            raise socket.gaierror(-2, "Name or service not known")
        return addresses

    with pytest.raises(NoAnswer, match=r"^nowhere\.example: \w+: \S"):
        await get(Client(look_up=look_up), "http://nowhere.example/")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class TestTls:
    def certified(self, authority: trustme.CA, name: str) -> tuple[ssl.SSLContext, list[str | None]]:
        """A server's side with a certificate for a name, and the names that callers have asked for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        asked: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: asked.append(name)
        return context, asked

    def client(self, authority: trustme.CA | None) -> Client:
        trust = ssl.create_default_context()
        if authority:
            authority.configure_trust(trust)
        return Client(allow_private=True, look_up=Names("127.0.0.1"), trust=trust if authority else None)

    async def test_the_certificate_is_checked_against_the_name(self, authority: trustme.CA) -> None:
        context, asked = self.certified(authority, "shop.example")
        async with server.endpoint(context) as there:
            url = f"https://shop.example:{there.port}/"
            assert (await get(self.client(authority), url)).status == 200
            assert asked == ["shop.example"]

    async def test_a_certificate_of_another_name_is_refused(self, authority: trustme.CA) -> None:
        context, _ = self.certified(authority, "other.example")
        async with server.endpoint(context) as there:
            with pytest.raises(NoAnswer, match="Hostname mismatch"):
                await get(self.client(authority), f"https://shop.example:{there.port}/")
            assert there.received == []

    async def test_a_certificate_of_nobody_known_is_refused(self, authority: trustme.CA) -> None:
        context, _ = self.certified(authority, "shop.example")
        async with server.endpoint(context) as there:
            with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
                await get(self.client(None), f"https://shop.example:{there.port}/")
            assert there.received == []
