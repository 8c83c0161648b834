"""Two handlers as an application would have them; `HANDLERS=["pipeline.handlers.example"]` serves them.

They show what to copy: the payload's type refuses at submit what can be known by then, `Permanent` refuses
what only shows later, and work that may be repeated is done under a name that is the same in each run.
"""

from __future__ import annotations

import asyncio
import os
from decimal import ROUND_HALF_UP, Decimal
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from pipeline.handlers import Permanent, handler

if TYPE_CHECKING:
    from pipeline.handlers import Context

CENT = Decimal("0.01")
HIGHEST_PRICE = 1_000_000

OneLine = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\A[^\x00-\x1f]*\Z")]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of an invoice."""

    description: OneLine
    unit_price: Decimal
    quantity: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1

    def __post_init__(self) -> None:
        """Refuse what the annotations cannot; a ValueError refuses the payload, also at submit."""
        if not (self.unit_price.is_finite() and 0 <= self.unit_price <= HIGHEST_PRICE):
            raise ValueError(f"unit_price is not between 0 and {HIGHEST_PRICE}")

    @property
    def amount(self) -> Decimal:
        """Price times quantity, to the cent."""
        return (self.unit_price * self.quantity).quantize(CENT, ROUND_HALF_UP)


class InvoiceOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an invoice is rendered from; a price is a JSON string or number, and kept exact."""

    number: OneLine
    customer: OneLine
    lines: Annotated[list[Line], msgspec.Meta(min_length=1, max_length=1_000)]


class Invoice(msgspec.Struct, frozen=True):
    """A rendered invoice."""

    number: str
    total: Decimal
    text: str


@handler("invoice.render", timeout_seconds=60, cpu=True)
def render_invoice(order: InvoiceOrder) -> Invoice:
    """Render an invoice as text.

    It computes and does not wait, so it is not async; `cpu=True` gives it a process of its own, where it
    holds up nobody and is killed at its deadline. It changes nothing, so a repeat does no harm.
    """
    total = sum((line.amount for line in order.lines), Decimal(0))
    rows = [f"{line.quantity:>6} x {line.description:<40.40}{line.amount:>14}" for line in order.lines]
    head = [f"Invoice {order.number}", f"for {order.customer}", ""]
    return Invoice(order.number, total, "\n".join([*head, *rows, f"{'Total':<49}{total:>14}"]))


class Email(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message to one person; the subject is one line, so that nobody smuggles a header in."""

    to: Annotated[str, msgspec.Meta(max_length=254)]
    subject: OneLine
    text: Annotated[str, msgspec.Meta(max_length=100_000)]


class Sent(msgspec.Struct, frozen=True):
    """What became of a message."""

    message_id: str


@handler("email.send", timeout_seconds=30, max_retries=5)
async def send_email(email: Email, ctx: Context) -> Sent:
    """Put a message into the folder EXAMPLE_OUTBOX (default `outbox`), where a mail server would take it.

    A run may be repeated after it has sent: the worker can die before it has recorded the result. So the
    message is known by `ctx.idempotency_key`, and a second run overwrites the file of the first.
    A full disk raises OSError, and the task is retried like after any other exception.
    """
    message = compose(email, ctx.idempotency_key)
    folder = Path(os.environ.get("EXAMPLE_OUTBOX", "outbox"))
    await asyncio.to_thread(put, folder, f"{ctx.idempotency_key}.eml", message.as_bytes())
    ctx.log.info("message sent", to=email.to)
    return Sent(str(message["Message-ID"]))


def compose(email: Email, key: str) -> EmailMessage:
    """Write the message; an address that is none stays so, hence Permanent."""
    try:
        recipient = Address(addr_spec=email.to)
    except (ValueError, IndexError, MessageError) as error:
        raise Permanent(f"{email.to!r} is not an address: {error}") from error
    if "." not in recipient.domain:
        raise Permanent(f"{email.to!r} is not an address: its domain has no dot")
    message = EmailMessage()
    message["Message-ID"] = f"<{key}@example.org>"
    message["To"] = recipient
    message["Subject"] = email.subject
    message.set_content(email.text)
    return message


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a file that appears whole or not at all, as a maildir asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.{os.getpid()}"
    unfinished.write_bytes(content)
    unfinished.replace(folder / name)
