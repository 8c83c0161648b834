"""Exceptions of user code as text, and the ones handlers raise on purpose."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from pipeline.handlers import Context, PayloadInvalid, Permanent, RetryLater
from pipeline.handlers.errors import ChildError, ChildKilled, ResultInvalid, describe
from pipeline.handlers.wire import Raised, Work, frame, reply_decoder, work_decoder
from storage.model import Failure, Priority, Reason, Reference, Run

TASK = UUID("0190a0a0-0000-7000-8000-000000000001")


class Mute(Exception):
    def __str__(self) -> str:
        raise LookupError


class CardDeclined(Permanent):
    """As applications derive their own."""


def test_a_failure_has_type_and_message() -> None:
    assert describe(ValueError("no")) == Failure("ValueError", "no")


def test_what_cannot_be_stored_is_replaced() -> None:
    assert describe(ChildError("Odd\ud800", "a\x00b\udfffc")) == Failure("Odd\ufffd", "a\ufffdb\ufffdc")


def test_long_messages_are_cut() -> None:
    message = describe(ValueError("x" * 5_000)).message
    assert len(message) == 2_000
    assert message.endswith("x…")
    assert describe(ValueError("x" * 2_000)).message == "x" * 2_000


def test_an_error_whose_text_cannot_be_had_is_described_all_the_same() -> None:
    assert describe(Mute()) == Failure("Mute", "(no message: its __str__ raised LookupError)")


def test_a_group_names_its_members() -> None:
    group = ExceptionGroup("two", [ValueError("a"), Mute()])
    assert describe(group).message.startswith("two (2 sub-exceptions): ValueError: a; Mute: (no message")


def test_reasons_tell_apart_what_the_handler_did_not_raise() -> None:
    assert describe(ChildKilled(-9)).reason is Reason.KILLS_WORKER
    assert describe(ResultInvalid("x")).reason is Reason.RESULT_UNSTORABLE
    assert describe(PayloadInvalid("x")).reason is Reason.ERROR


def test_a_killed_child_says_how() -> None:
    assert str(ChildKilled(-11)).endswith("killed by SIGSEGV (11)")
    assert (ChildKilled(-11).signal, ChildKilled(-11).exit_code) == (11, None)
    assert str(ChildKilled(3)).endswith("exit code 3")
    assert (ChildKilled(3).signal, ChildKilled(3).exit_code) == (None, 3)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 366 * 86_400])
def test_retry_later_takes_a_year_at_most(seconds: float) -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 31536000"):
        RetryLater(seconds)


def test_retry_later_carries_seconds_and_a_message() -> None:
    assert RetryLater(60).seconds == 60
    assert str(RetryLater(60)) == "asked to be started again in 60 seconds"
    assert str(RetryLater(60, "rate limit")) == "rate limit"


def _over_the_wire(error: BaseException) -> Exception:
    reply = reply_decoder.decode(frame(Raised.of(error))[4:])
    assert isinstance(reply, Raised)
    return reply.exception()


def test_a_foreign_error_arrives_by_name_with_its_traceback() -> None:
    try:
        raise LookupError("k\ud800")  # noqa: TRY301 - for its traceback
    except LookupError as error:
        arrived = _over_the_wire(error)
    assert isinstance(arrived, ChildError)
    assert describe(arrived) == Failure("LookupError", "k\ufffd")
    assert "test_handlers_errors.py" in arrived.__notes__[0]


def test_our_own_errors_arrive_as_such() -> None:
    declined = _over_the_wire(CardDeclined("no money"))
    assert isinstance(declined, Permanent)
    assert describe(declined) == Failure("CardDeclined", "no money")
    later = _over_the_wire(RetryLater(7.5, "busy"))
    assert isinstance(later, RetryLater)
    assert (later.seconds, str(later)) == (7.5, "busy")
    invalid = _over_the_wire(PayloadInvalid("Expected `int`", "$.a"))
    assert isinstance(invalid, PayloadInvalid)
    assert (invalid.message, invalid.path) == ("Expected `int`", "$.a")
    assert isinstance(_over_the_wire(ResultInvalid("too large")), ResultInvalid)
    assert describe(_over_the_wire(SystemExit(3))) == Failure("SystemExit", "3")


def test_a_context_shows_the_run_and_travels() -> None:
    run = Run(
        reference=Reference(TASK, 4),
        kind="a",
        payload=b"",
        priority=Priority.LOW,
        attempt=2,
        max_retries=3,
        timeout_seconds=5,
        losses=1,
        replay=6,
        trace_context="t",
    )
    context = Context.of(run)
    assert context == Context(
        task_id=TASK,
        kind="a",
        attempt=2,
        dispatch=4,
        replay=6,
        losses=1,
        timeout_seconds=5,
        trace_context="t",
    )
    assert context.idempotency_key == f"{TASK}-6"
    assert context.fence == 4
    assert work_decoder.decode(frame(Work("a", b"\xff", context))[4:]).context == context


def test_a_context_is_frozen_and_logs_which_task() -> None:
    context = Context(task_id=TASK, kind="a", dispatch=3)
    with pytest.raises(AttributeError):
        context.attempt = 5  # type: ignore[misc]  # that it cannot be done is the point
    assert context.log._context == {"task_id": str(TASK), "dispatch": 3, "kind": "a"}
    assert msgspec.structs.replace(context, attempt=2).attempt == 2
