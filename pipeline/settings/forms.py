"""The written forms of settings: how a text becomes a value, what is allowed, what may be shown of it."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import StrEnum

MASK = "********"
_FLAGS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def mask_nothing(text: str) -> str:
    """Show a text as it is."""
    return text


def mask_all(text: str) -> str:
    """Hide a text, but not whether there is one."""
    return MASK if text else ""


def mask_url(text: str) -> str:
    """Hide the password of an AMQP URL, and in a broken one all that may be a password."""
    if is_amqp_url(text) and urlsplit(text).password is None:
        return text
    if "@" in text:
        return re.sub(r"^((?:[A-Za-z]+://)?[^:/@]*).*@", rf"\1:{MASK}@", text, flags=re.DOTALL)
    return re.sub(r"^([A-Za-z]+://)?.+", rf"\1{MASK}", text, flags=re.DOTALL)


class Form(msgspec.Struct, frozen=True):
    """How one setting is written.

    `parse` raises ValueError for text outside `allowed`; `write` is its inverse; `mask` takes the secrets out
    of a text, right or wrong; `native` names the TOML types taken besides a string.
    """

    allowed: str
    parse: Callable[[str], Any]
    write: Callable[[Any], str] = str
    mask: Callable[[str], str] = mask_nothing
    native: tuple[type, ...] = ()

    def read(self, raw: object) -> Any:
        """Turn what a source holds into the value; ValueError if it is not allowed."""
        return self.parse(self._text(raw))

    def show(self, value: object) -> str:
        """Write a value without its secrets."""
        return self.mask(self.write(value))

    def quote(self, raw: object) -> str:
        """Quote what a source holds, right or wrong, without its secrets."""
        if isinstance(raw, str):
            return repr(self.mask(raw))
        return repr(raw) if self.mask is mask_nothing else MASK

    def _text(self, raw: object) -> str:
        if isinstance(raw, str):
            return raw
        if isinstance(raw, list) and list in self.native:
            return ",".join(map(_entry, raw))
        if isinstance(raw, self.native):
            return str(raw)
        raise ValueError


def _entry(raw: object) -> str:
    """Write one entry of a TOML list; a comma inside would make two of it."""
    if type(raw) not in {str, int} or "," in str(raw):
        raise ValueError
    return str(raw)


def plain(
    allowed: str, accepts: Callable[[str], object] = lambda _: True, mask: Callable[[str], str] = mask_nothing
) -> Form:
    """Take text exactly as it is written, but no NUL or lone surrogate: no server stores them."""

    def parse(text: str) -> str:
        if b"\0" in text.encode() or not accepts(text):
            raise ValueError
        return text

    return Form(allowed, parse, mask=mask)


def whole(low: int, high: int) -> Form:
    """Take a whole number in plain digits: no `1_000`, ` 5` or `1e3`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"0|[1-9][0-9]*", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Form(f"a whole number from {low} to {high}", parse, native=(int,))


def decimal(low: float, high: float) -> Form:
    """Take a number in plain digits, with or without a fraction."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]+)?", text) or not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return Form(f"a number from {low:g} to {high:g}", parse, "{:.12g}".format, native=(int, float))


def flag() -> Form:
    """Take a truth value in any case."""

    def parse(text: str) -> bool:
        if text.lower() not in _FLAGS:
            raise ValueError
        return _FLAGS[text.lower()]

    def write(value: bool) -> str:
        return "true" if value else "false"

    return Form("true or false (or yes, no, on, off, 1, 0)", parse, write, native=(bool, int))


def choice(members: type[StrEnum]) -> Form:
    """Take one member of an enumeration, in any case."""
    return Form(f"one of {', '.join(members)}", lambda text: members(text.lower()))


def listed(
    entry: Form,
    allowed: str,
    *,
    least: int = 0,
    unique: bool = True,
    mask: Callable[[str], str] = mask_nothing,
) -> Form:
    """Take entries between commas, spaces around them ignored, as a tuple; in TOML a list of them as well."""

    def parse(text: str) -> tuple[Any, ...]:
        values = tuple(entry.parse(part.strip()) for part in text.split(",")) if text.strip() else ()
        if len(values) < least or (unique and len(set(values)) < len(values)):
            raise ValueError
        return values

    return Form(allowed, parse, lambda values: ",".join(map(entry.write, values)), mask, (list,))


def subset(members: type[StrEnum]) -> Form:
    """Take one or several members of an enumeration as a frozenset; `all` stands for every one."""
    allowed = f"all, or one or several of {', '.join(members)}, separated by commas, none twice"
    several = listed(choice(members), allowed, least=1)

    def parse(text: str) -> frozenset[StrEnum]:
        return frozenset(members if text.lower() == "all" else several.parse(text))

    def write(chosen: frozenset[StrEnum]) -> str:
        return "all" if chosen == frozenset(members) else ",".join(m for m in members if m in chosen)

    return Form(allowed, parse, write, native=(list,))


def folder() -> Form:
    """Take a path, relative to the working directory unless absolute."""
    named = plain("the path of a folder", bool)
    return Form(named.allowed, lambda text: Path(named.parse(text)))


def hostname() -> Form:
    """Take a host name or an IP address."""
    return plain("a host name or an IP address", is_host)


def hostname_or_socket_folder() -> Form:
    """Take what libpq takes as host: a host name, an IP address, or the folder of a unix socket."""
    return plain(
        "a host name, an IP address, or the absolute path of the folder of a unix socket",
        lambda text: text.startswith("/") or is_host(text),
    )


def amqp_url() -> Form:
    """Take the address of a RabbitMQ virtual host."""
    allowed = (
        "amqp://user:password@host:port/vhost, or amqps://,"
        " with reserved characters of user and password percent-encoded"
    )
    return plain(allowed, is_amqp_url, mask_url)


def is_host(text: str) -> bool:
    """Tell whether a text can name a host."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text))


def is_amqp_url(text: str) -> bool:
    """Tell whether a text is a URL that says without doubt which part of it is the host."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    # A bare "@", "/", "?" or "#" in a password shifts where the host begins: "@" is then double or misplaced.
    misread = text.count("@") != url.netloc.count("@") or url.netloc.count("@") > 1 or url.fragment
    return (
        url.scheme in {"amqp", "amqps"}
        and is_host(url.hostname or "")
        and port != 0
        and not misread
        and bool(re.fullmatch(r"[!-~]+", text))
    )
