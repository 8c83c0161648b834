"""HTTP exchanges with servers elsewhere, over connections to none but checked addresses."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from typing import TYPE_CHECKING, NamedTuple

import httpcore

from pipeline.handlers.errors import Permanent, tell

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from pipeline.handlers.http_request import Endpoint

    Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

CONNECT_SECONDS = 10.0
"""For each address of a host: a silent one leaves time for the next."""

# https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-special-registry, multicast besides.
_GLOBAL_UNICAST_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # in Azure, the host's own services, under a public address
            "2001::/23",  # Teredo (2001::/32) among others
            "2001:db8::/32",
            "2002::/16",  # 6to4: holds an IPv4 address
            "3fff::/20",
        ),
    )
)


class AddressRefused(Permanent):
    """A host with an address that is not public."""


class NoAnswer(Exception):
    """The server could not be found or reached, broke off, or took too long."""


class Response(NamedTuple):
    """What a server answered; `headers` have lower-case names, `body` is cut where `truncated`."""

    status: int
    headers: dict[str, str]
    body: bytes
    truncated: bool


def is_public(address: str) -> bool:
    """Tell whether an address belongs to the public internet, by the registries of special addresses.

    An IPv6 address that only carries one of IPv4 (mapped, compatible, NAT64, 6to4, Teredo) does not.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and (parsed.scope_id or parsed not in _GLOBAL_UNICAST_6):
        return False
    return not any(parsed in network for network in _NOT_PUBLIC)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Look all addresses of a host up, as the system does; raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Checked(httpcore.AsyncNetworkBackend):
    """Connects to a host by the addresses it has now, unless one of them is not public.

    What is checked is what is connected to: a name looked up again could lead elsewhere (DNS rebinding).
    TLS knows nothing of it, the certificate is checked against the name.
    """

    def __init__(self, look_up: Resolve, *, allow_private: bool) -> None:
        self._look_up = look_up
        self._allow_private = allow_private
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers; raises AddressRefused, OSError, httpcore's errors."""
        failures: list[str] = []
        for address in await self._addresses(host, port):
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failures.append(f"{address}: {tell(_first_cause(error))}")
        raise httpcore.ConnectError("; ".join(failures) or "it has no address")

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        addresses = await self._look_up(host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            # Without the address: who may submit tasks need not learn what is where in our network.
            raise AddressRefused(
                f"{host} has an address that is not public; allowed: public addresses,"
                " and any with HTTP_ALLOW_PRIVATE_ADDRESSES"
            )
        return addresses


class Client:
    """Makes exchanges, each over a connection of its own.

    So it holds nothing that has to be closed or belongs to an event loop, which handlers have no place for;
    and no exchange travels over a connection that was checked for another. Redirects are not followed,
    proxies of the environment not used, bodies not decompressed.
    """

    def __init__(
        self, *, allow_private: bool = False, look_up: Resolve = resolve, trust: ssl.SSLContext | None = None
    ) -> None:
        self._backend = Checked(look_up, allow_private=allow_private)
        self._trust = trust

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        """Trust whom the system and certifi trust; made once, for it takes some 50 ms."""
        return self._trust or httpcore.default_ssl_context()

    async def exchange(
        self,
        method: str,
        endpoint: Endpoint,
        headers: Sequence[tuple[str, str]],
        content: bytes | None,
        *,
        timeout_seconds: float,
        most_bytes: int,
    ) -> Response:
        """Send a request and read the answer, at most `most_bytes` of its body.

        Raises AddressRefused, and NoAnswer where no whole answer came in time.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._exchange(method, endpoint, headers, content, most_bytes)
        except TimeoutError as error:
            raise NoAnswer(f"{endpoint.host}: not done after {timeout_seconds:g} s") from error
        except (OSError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise NoAnswer(f"{endpoint.host}: {tell(_first_cause(error))}") from error

    async def _exchange(
        self,
        method: str,
        endpoint: Endpoint,
        headers: Sequence[tuple[str, str]],
        content: bytes | None,
        most_bytes: int,
    ) -> Response:
        url = httpcore.URL(
            scheme=endpoint.scheme, host=endpoint.host, port=endpoint.port, target=endpoint.target
        )
        own = [("Host", endpoint.authority), ("Accept-Encoding", "identity"), ("Connection", "close")]
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._tls if endpoint.scheme == "https" else None, network_backend=self._backend
            ) as pool,
            pool.stream(
                method,
                url,
                headers=[*own, *headers],
                content=content,
                extensions={"timeout": {"connect": CONNECT_SECONDS}},
            ) as response,
        ):
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > most_bytes:
                    break
            return Response(
                response.status,
                _joined(response.headers),
                bytes(body[:most_bytes]),
                truncated=len(body) > most_bytes,
            )


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Put fields of one name into one, as RFC 9110 (5.3) has it."""
    joined: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("ascii").lower(), value.decode("latin-1")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return joined


def _first_cause(error: BaseException) -> BaseException:
    """Go down to the system's error: those above it often have no message."""
    while error.__cause__:
        error = error.__cause__
    return error
