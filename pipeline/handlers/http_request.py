"""The kind `http.request`: calls an HTTP endpoint, and turns its answer into an outcome."""

from __future__ import annotations

import base64
import codecs
import functools
import ipaddress
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from pipeline.handlers.definition import handler
from pipeline.handlers.errors import Permanent, RetryLater

if TYPE_CHECKING:
    from pipeline.handlers.context import Context
    from pipeline.handlers.definition import Handler
    from pipeline.handlers.outbound import Client, Response

LONGEST_URL = 4_096
LONGEST_HOST = 253
HIGHEST_PORT = 65_535
MOST_HEADERS = 50
LARGEST_HEADERS = 16 * 1024
LARGEST_BODY = 64 * 1024
LONGEST_TIMEOUT_SECONDS = 86_400.0
LONGEST_QUOTE = 500
LONGEST_KEPT_HEADER = 2_000

RETRY_AFTER_SECONDS = (1.0, 86_400.0)
"""What a Retry-After is held to: 0 would use up all postponements at once, and a year is a mistake."""

WORTH_A_REPEAT = frozenset({408, 425, 429})
"""4xx that blame the moment and not the request (RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4)."""

NO_BODY = frozenset({"GET", "HEAD"})

# The framing and the connection are ours (RFC 9110 7.6.1); a Host of its own would choose another server
# behind the checked address; the body is kept as it comes, so it has to come plain.
RESERVED = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive"),
        *("proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    }
)
KEPT = (
    *("content-encoding", "content-language", "content-location", "content-type", "date", "etag"),
    *("last-modified", "link", "location", "x-request-id"),
)

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    r"(?P<target>(?:[/?][!\"$-\[\]-~]*)?)",
    re.ASCII | re.IGNORECASE,
)
# The URL standard (https://url.spec.whatwg.org/#ends-in-a-number-checker): such a host is an IPv4 address.
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_URL_ALLOWED = (
    "url: allowed: http:// or https://, a host name (not ending in a dot), an IPv4 address like 192.0.2.1 or"
    " an IPv6 address in brackets, a port from 1 to 65535, path and query; all in printable ASCII, with no"
    " user and no fragment"
)


class Endpoint(NamedTuple):
    """A URL in its parts, in the one reading of it that there is; `host` is without brackets."""

    scheme: str
    host: str
    port: int | None
    target: str

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """Read a URL; raises ValueError on whatever another reader might read otherwise."""
        match = _URL.fullmatch(url)
        if match is None or len(match["host"]) > LONGEST_HOST:
            raise ValueError(_URL_ALLOWED)
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 1 <= port <= HIGHEST_PORT:
            raise ValueError(_URL_ALLOWED)
        target = match["target"] if match["target"].startswith("/") else f"/{match['target']}"
        return cls(match["scheme"].lower(), _host(match["host"].lower()), port, target)

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request; of `body` a text is sent as it is, any other JSON value as JSON, byte for byte."""

    url: Annotated[str, msgspec.Meta(max_length=LONGEST_URL)]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"] = "POST"
    headers: Annotated[
        dict[
            Annotated[str, msgspec.Meta(max_length=100, pattern=r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")],
            Annotated[str, msgspec.Meta(max_length=8_192, pattern=r"\A(?:[!-~](?:[\t -~]*[!-~])?)?\Z")],
        ],
        msgspec.Meta(max_length=MOST_HEADERS),
    ] = {}
    body: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    timeout_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=LONGEST_TIMEOUT_SECONDS)] = 30.0

    def __post_init__(self) -> None:
        """Refuse what the annotations cannot."""
        Endpoint.of(self.url)
        names = {name.lower() for name in self.headers}
        if reserved := sorted(names & RESERVED):
            raise ValueError(f"headers: not to be set: {', '.join(reserved)}")
        if len(names) < len(self.headers):
            raise ValueError("headers: the same name twice, in different case")
        if sum(map(len, (*self.headers, *self.headers.values()))) > LARGEST_HEADERS:
            raise ValueError(f"headers: allowed: {LARGEST_HEADERS} characters in all")
        if self.content[1] and self.method in NO_BODY:
            raise ValueError(f"body: a {self.method} has none")

    @property
    def content(self) -> tuple[str, bytes]:
        """Media type and bytes of the body; two empty ones where it is left out or null."""
        raw = bytes(self.body)
        if raw in {b"", b"null"}:
            return "", b""
        if raw.startswith(b'"'):
            return "text/plain; charset=utf-8", msgspec.json.decode(raw, type=str).encode()
        raw.decode()  # msgspec does not look into what it leaves raw
        return "application/json", raw

    def fields(self, ctx: Context) -> list[tuple[str, str]]:
        """List the headers to send: those given, and ours where not given."""
        ours = {"Accept": "*/*", "User-Agent": "baton", "Idempotency-Key": ctx.idempotency_key}
        if media_type := self.content[0]:
            ours["Content-Type"] = media_type
        given = {name.lower() for name in self.headers}
        return [*self.headers.items(), *((name, ours[name]) for name in ours if name.lower() not in given)]


class Answer(msgspec.Struct, frozen=True):
    """A 2xx answer: a few of its headers, and up to 64 KiB of its body, in base64 unless it is UTF-8 text."""

    status: int
    headers: dict[str, str]
    body: str
    body_encoding: Literal["utf-8", "base64"]
    truncated: bool


class Unsuccessful(Exception):
    """The endpoint answered, and a repeat may go better."""


def http_request(*, allow_private_addresses: bool) -> Handler[..., Any]:
    """Make the handler; without `allow_private_addresses` it reaches nothing but the public internet."""

    @functools.cache
    def client() -> Client:
        # httpcore would cost each child process a tenth of a second at its start, and few of them need it.
        from pipeline.handlers.outbound import Client  # noqa: PLC0415 - as said

        return Client(allow_private=allow_private_addresses)

    @handler("http.request")
    async def request(payload: Request, ctx: Context) -> Answer:
        """Call an HTTP endpoint: 2xx is done, 429, 5xx and no answer are repeated, all else is permanent."""
        _, content = payload.content
        response = await client().exchange(
            payload.method,
            Endpoint.of(payload.url),
            payload.fields(ctx),
            # A POST says also that it has no body (RFC 9110 8.6); of the others nobody expects one.
            content or (b"" if payload.method in {"POST", "PUT", "PATCH"} else None),
            timeout_seconds=payload.timeout_seconds,
            most_bytes=LARGEST_BODY,
        )
        return judge(response)

    return request


def judge(response: Response) -> Answer:
    """Return what succeeded; raises Permanent, RetryLater or Unsuccessful for what did not."""
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004 - the classes of RFC 9110 (15)
        kept = {name: response.headers[name] for name in KEPT if name in response.headers}
        body, encoding = _readable(response)
        return Answer(
            status,
            {name: value[:LONGEST_KEPT_HEADER] for name, value in kept.items()},
            body,
            encoding,
            response.truncated,
        )
    if 300 <= status < 400:  # noqa: PLR2004 - as above
        where = response.headers.get("location", "nowhere")[:LONGEST_QUOTE]
        raise Permanent(f"the endpoint answered {status} and points to {where}; redirects are not followed")
    said = response.body[:LONGEST_QUOTE].decode(errors="replace")
    message = f"the endpoint answered {status}: {said}" if said else f"the endpoint answered {status}"
    if status in {429, 503}:
        named = response.headers.get("retry-after", "")
        seconds = retry_after(named, response.headers.get("date", ""))
        if seconds is not None:
            raise RetryLater(seconds, message)
    if 400 <= status < 500 and status not in WORTH_A_REPEAT:  # noqa: PLR2004 - as above
        raise Permanent(message)
    raise Unsuccessful(message)


def retry_after(value: str, answered: str = "") -> float | None:
    """Read a Retry-After (RFC 9110 10.2.3), seconds or a date, as 1 to 86,400 seconds; None if neither.

    A date counts from when the endpoint `answered` by its own clock, and from now where it did not say.
    """
    if re.fullmatch("[0-9]{1,12}", value):
        seconds = float(value)
    elif (until := _moment(value)) is not None:
        seconds = (until - (_moment(answered) or datetime.now(UTC))).total_seconds()
    else:
        return None
    least, most = RETRY_AFTER_SECONDS
    return min(max(seconds, least), most)


def _moment(date: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC)


def _readable(response: Response) -> tuple[str, Literal["utf-8", "base64"]]:
    """Put a body into JSON. A cut may have gone through a character; NUL is text that no database takes."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(response.body, final=not response.truncated)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return base64.b64encode(response.body).decode(), "base64"
    return text, "utf-8"


def _host(host: str) -> str:
    """Take a host in one notation: resolvers read 127.1, 0x7f000001 and 2130706433 as addresses, too."""
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if _ENDS_IN_NUMBER.fullmatch(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ValueError(_URL_ALLOWED) from None
    return host
