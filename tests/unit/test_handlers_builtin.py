"""The built-in kinds and the example application."""

from __future__ import annotations

import email
import email.policy
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
import pytest

from pipeline.handlers import Context, PayloadInvalid, Permanent, load
from pipeline.handlers.builtin import FailedAsAsked, echo, fail, sleep
from pipeline.handlers.example import Email, InvoiceOrder, Line, render_invoice, send_email
from pipeline.handlers.runners import OnLoop

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = Context(task_id=uuid4(), kind="any")


async def test_echo_returns_its_payload() -> None:
    assert await OnLoop().run(echo, b'{"a": [1, "\xc3\xa4", null]}', CONTEXT) == '{"a":[1,"ä",null]}'


async def test_sleep_tells_how_long_it_slept() -> None:
    assert await OnLoop().run(sleep, b'{"seconds": 0.01}', CONTEXT) == '{"slept_seconds":0.01}'


@pytest.mark.parametrize("payload", [b"{}", b'{"seconds":-1}', b'{"seconds":3601}', b'{"seconds":1,"x":2}'])
def test_sleep_refuses(payload: bytes) -> None:
    with pytest.raises(PayloadInvalid):
        sleep.decode(payload)


async def test_fail_fails() -> None:
    with pytest.raises(FailedAsAsked, match="failed as asked"):
        await OnLoop().run(fail, b"{}", CONTEXT)
    with pytest.raises(Permanent, match="hopeless"):
        await OnLoop().run(fail, b'{"message":"hopeless","permanent":true}', CONTEXT)


async def test_fail_succeeds_from_the_attempt_that_was_asked() -> None:
    payload = b'{"until_attempt":3}'
    with pytest.raises(FailedAsAsked):
        await OnLoop().run(fail, payload, msgspec.structs.replace(CONTEXT, attempt=2))
    third = msgspec.structs.replace(CONTEXT, attempt=3)
    assert await OnLoop().run(fail, payload, third) == '{"attempt":3}'


def test_the_example_loads() -> None:
    assert {"email.send", "invoice.render"} < set(load(["pipeline.handlers.example"]))


def test_an_invoice_adds_up_to_the_cent() -> None:
    invoice = render_invoice(
        InvoiceOrder(
            "2026-1",
            "Ada",
            [Line("Screws", Decimal("0.105"), 3), Line("A very long hammer " * 5, Decimal("12.5"))],
        )
    )
    assert invoice.total == Decimal("12.82")
    assert invoice.text.splitlines()[-1].split() == ["Total", "12.82"]
    assert {len(row) for row in invoice.text.splitlines()[3:]} == {63}


@pytest.mark.parametrize("price", ["-1", '"NaN"', '"Infinity"', "1000001"])
def test_an_invoice_refuses_odd_prices(price: str) -> None:
    order = f'{{"number":"1","customer":"A","lines":[{{"description":"x","unit_price":{price}}}]}}'
    with pytest.raises(PayloadInvalid, match="unit_price is not between") as caught:
        render_invoice.decode(order.encode())
    assert caught.value.path == "$.lines[0]"


async def test_an_email_is_written_once_however_often_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_OUTBOX", str(tmp_path / "outbox"))
    mail = Email("ada@example.org", "Grüße", "Hello")
    first = await send_email(mail, CONTEXT)
    assert send_email.encode(first)
    again = await send_email(mail, msgspec.structs.replace(CONTEXT, attempt=2, dispatch=5))
    assert first == again
    (written,) = (tmp_path / "outbox").iterdir()
    message = email.message_from_bytes(written.read_bytes(), policy=email.policy.default)
    assert message["Message-ID"] == first.message_id == f"<{CONTEXT.idempotency_key}@example.org>"
    assert (message["To"], message["Subject"]) == ("ada@example.org", "Grüße")


@pytest.mark.parametrize(
    "address", ["", "ada", "ada@", "@example.org", "ada@local", "a@b.c, d@e.f", "a\n@b.c"]
)
async def test_an_address_that_is_none_is_permanent(address: str) -> None:
    with pytest.raises(Permanent, match="is not an address"):
        await send_email(Email(address, "Hi", ""), CONTEXT)


def test_a_subject_of_two_lines_is_refused_at_submit() -> None:
    with pytest.raises(PayloadInvalid) as caught:
        send_email.decode(rb'{"to":"a@b.c","subject":"Hi\nBcc: all@example.org","text":""}')
    assert caught.value.path == "$.subject"
