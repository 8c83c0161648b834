from __future__ import annotations

import io
import json
import logging
import math
import time
import uuid
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from pipeline import logs
from pipeline.settings import LogFormat, LogLevel
from storage.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, _: str, /) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    logs.configure(LogFormat.JSON, LogLevel.INFO, stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logged(stream: io.StringIO, **values: object) -> dict[str, Any]:
    """Log the values and read the line back."""
    structlog.get_logger().info("event", **values)
    [line] = lines(stream)
    return line


def test_a_line_is_json_with_time_level_and_event_first(stream: io.StringIO) -> None:
    task_id = uuid.uuid4()
    structlog.get_logger().info("claimed", task_id=task_id, dispatch=3, kind="echo", role="worker")
    [line] = lines(stream)
    assert list(line) == ["timestamp", "level", "event", "task_id", "dispatch", "kind", "role"]
    assert line | {"timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "event": "claimed",
        "task_id": str(task_id),
        "dispatch": 3,
        "kind": "echo",
        "role": "worker",
    }
    assert abs(datetime.now(UTC) - datetime.fromisoformat(line["timestamp"])).total_seconds() < 60
    assert line["timestamp"].endswith("Z")


def test_what_is_bound_to_the_context_is_on_every_line(stream: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(role="relay")
    structlog.get_logger().info("ours")
    logging.getLogger("shop").info("theirs")
    assert [line["role"] for line in lines(stream)] == ["relay", "relay"]


def test_below_the_level_nothing_is_even_looked_at(stream: io.StringIO) -> None:
    class Expensive:
        def __str__(self) -> str:
            raise AssertionError("asked for its text")

    structlog.get_logger().debug("quiet", value=Expensive())
    assert stream.getvalue() == ""


def test_an_exception_is_a_traceback_in_one_field_without_local_variables(stream: io.StringIO) -> None:
    confidential = "for a debugger only"
    try:
        confidential.index("?")
    except ValueError:
        structlog.get_logger().exception("bad")
    [line] = lines(stream)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: substring not found")
    assert "for a debugger only" not in line["exception"]


class TestStandardLibrary:
    def test_its_records_become_the_same_lines(self, stream: io.StringIO) -> None:
        logging.getLogger("shop.orders").info("order %s", 7, extra={"task_id": "t"})
        [line] = lines(stream)
        assert line | {"timestamp": ""} == {
            "timestamp": "",
            "level": "info",
            "event": "order 7",
            "logger": "shop.orders",
            "task_id": "t",
        }

    def test_their_exceptions_and_secrets_are_treated_alike(self, stream: io.StringIO) -> None:
        try:
            int("amqp://baton:sesame@host/")
        except ValueError:
            logging.getLogger("litestar").exception("lost %s", "amqp://baton:sesame@host/")
        [line] = lines(stream)
        assert "sesame" not in json.dumps(line)
        assert line["event"] == "lost amqp://baton:***@host/"
        assert "amqp://baton:***@host/" in line["exception"]

    @pytest.mark.parametrize("name", ["uvicorn.error", "uvicorn.access", "litestar", "httpx"])
    def test_libraries_are_heard_from_warning_upwards(self, stream: io.StringIO, name: str) -> None:
        logging.getLogger(name).info("noise")
        logging.getLogger(name).warning("trouble")
        assert [line["event"] for line in lines(stream)] == ["trouble"]

    def test_the_level_error_quietens_them_further(self) -> None:
        stream = io.StringIO()
        logs.configure(LogFormat.JSON, LogLevel.ERROR, stream)
        logging.getLogger("httpx").warning("trouble")
        assert stream.getvalue() == ""

    @pytest.mark.parametrize("name", ["aiormq.connection", "aio_pika.robust_connection"])
    def test_what_the_brokers_link_tells_once_is_not_told_again(self, stream: io.StringIO, name: str) -> None:
        logging.getLogger(name).error("Connection attempt failed")
        assert stream.getvalue() == ""

    def test_a_handler_that_a_library_had_installed_is_gone(self) -> None:
        theirs, stream = io.StringIO(), io.StringIO()
        logging.getLogger("uvicorn").addHandler(logging.StreamHandler(theirs))
        logs.configure(LogFormat.JSON, LogLevel.INFO, stream)
        logging.getLogger("uvicorn").error("once")
        assert theirs.getvalue() == ""
        assert len(lines(stream)) == 1

    def test_warnings_of_python_are_lines(self) -> None:
        stream = io.StringIO()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logs.configure(LogFormat.JSON, LogLevel.INFO, stream)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        [line] = lines(stream)
        assert line["logger"] == "py.warnings"
        assert "DeprecationWarning: old" in line["event"]


class TestOddValues:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (b"\xff\x00a", "\\xff\x00a"),
            ("\ud800", "\\ud800"),
            (math.nan, "nan"),
            (2**200, str(2**200)),
            (Status.FAILED, "FAILED"),
            (ValueError("x"), "ValueError: x"),
            ({("a", 1): {1}}, {"('a', 1)": [1]}),
            ([[[[[1]]]]], [[[["…"]]]]),
            (None, None),
            (True, True),
        ],
    )
    def test_become_plain(self, stream: io.StringIO, value: object, shown: object) -> None:
        assert logged(stream, value=value)["value"] == shown

    def test_an_object_whose_text_fails(self, stream: io.StringIO) -> None:
        class Shy:
            def __str__(self) -> str:
                raise LookupError

        assert logged(stream, value=Shy())["value"] == "<Shy whose text fails: LookupError>"

    def test_a_list_that_holds_itself(self, stream: io.StringIO) -> None:
        endless: list[object] = []
        endless.append(endless)
        assert logged(stream, value=endless)["value"] == [[[["…"]]]]

    def test_an_event_that_is_no_text(self, stream: io.StringIO) -> None:
        structlog.get_logger().info({"a": 1})
        assert lines(stream)[0]["event"] == {"a": 1}

    def test_a_long_text_keeps_its_ends(self, stream: io.StringIO) -> None:
        value = logged(stream, value="begin" + "x" * 10_000 + "end")["value"]
        assert len(value) < 2_100
        assert value.startswith("beginx")
        assert value.endswith("xend")
        assert "8008 more characters" in value

    def test_a_long_list_is_cut(self, stream: io.StringIO) -> None:
        assert logged(stream, value=range(10**9))["value"] == "range(0, 1000000000)"
        assert logs.tame(None, "", {"value": list(range(1_000))})["value"] == list(range(50))

    @pytest.mark.parametrize("part", ["a://u:", "://", "password", "bearer ", 'secret="', "a.b+"])
    @pytest.mark.parametrize("name", ["value", "exception"])
    def test_no_text_takes_long_to_search_for_secrets(self, name: str, part: str) -> None:
        began = time.thread_time()
        logs.tame(None, "", {name: part * 500_000})
        assert time.thread_time() - began < 0.5

    def test_a_stream_that_nobody_reads(self) -> None:
        logs.configure(LogFormat.JSON, LogLevel.INFO, Broken())
        structlog.get_logger().info("nobody reads this")


class TestSecrets:
    @pytest.mark.parametrize(
        ("text", "redacted"),
        [
            ("to amqp://baton:p@ss:word@host:5672/v", "to amqp://baton:***@host:5672/v"),
            ("AMQPS://:x@host", "AMQPS://:***@host"),
            ("seeamqp://u:x@host", "seeamqp://u:***@host"),
            ("amqp://host/vhost", "amqp://host/vhost"),
            ("Authorization: Bearer abcdef.012345-x", "Authorization: Bearer ***"),
            ("bearer tokens are compared", "bearer tokens are compared"),
            ("POSTGRES_PASSWORD=a;b", "POSTGRES_PASSWORD=***;b"),
            ("host=h password='a b' user=u", "host=h password=*** user=u"),
            ('{"postgres_password": "a b"}', '{"postgres_password": ***}'),
            ("API_TOKENS=one,two", "API_TOKENS=***"),
            ("unexpected token: }", "unexpected token: }"),
        ],
    )
    def test_in_text_are_masked(self, text: str, redacted: str) -> None:
        assert logs.redact(text) == redacted

    @pytest.mark.parametrize("name", ["postgres_password", "api_tokens", "Authorization", "client_secret"])
    def test_are_known_by_the_name_of_their_field(self, stream: io.StringIO, name: str) -> None:
        line = logged(stream, **{name: ["sesame"]}, nested={name: "sesame"}, absent={name: None})
        assert line[name] == "***"
        assert line["nested"] == {name: "***"}
        assert line["absent"] == {name: None}

    def test_are_masked_before_a_long_text_is_cut(self) -> None:
        url = "amqp://baton:sesame@host"
        for place in range(990, 1_010):
            value = logs.tame(None, "", {"value": "x" * (place - len(url)) + url + "x" * 5_000})["value"]
            assert "sesam" not in value
            value = logs.tame(None, "", {"value": "x" * 5_000 + url + "x" * (place - len(url))})["value"]
            assert "sesam" not in value


class TestForPeople:
    def show(self, stream: io.StringIO, log_format: LogFormat) -> str:
        logs.configure(log_format, LogLevel.INFO, stream)
        structlog.get_logger().info("claimed", kind="echo")
        return stream.getvalue()

    def test_auto_is_json_where_nobody_looks(self) -> None:
        assert json.loads(self.show(io.StringIO(), LogFormat.AUTO))["kind"] == "echo"

    def test_auto_is_coloured_text_on_a_terminal(self) -> None:
        shown = self.show(Terminal(), LogFormat.AUTO)
        assert "\x1b[" in shown
        assert "claimed" in shown

    def test_console_has_no_colours_in_a_file(self) -> None:
        shown = self.show(io.StringIO(), LogFormat.CONSOLE)
        assert "\x1b[" not in shown
        assert "kind=echo" in shown

    def test_json_stays_json_on_a_terminal(self) -> None:
        assert json.loads(self.show(Terminal(), LogFormat.JSON))["kind"] == "echo"

    def test_nobody_forges_a_line_or_steers_the_terminal(self) -> None:
        stream = io.StringIO()
        logs.configure(LogFormat.CONSOLE, LogLevel.INFO, stream)
        structlog.get_logger().info("failed", error="a\n2026-01-01 [info] all is well\x1b[2J\x9b")
        [line] = stream.getvalue().splitlines()
        assert "a␊2026-01-01" in line
        assert "well␛[2J␡" in line

    def test_a_traceback_keeps_its_lines(self) -> None:
        stream = io.StringIO()
        logs.configure(LogFormat.CONSOLE, LogLevel.INFO, stream)
        try:
            int("amqp://baton:sesame@host")
        except ValueError:
            structlog.get_logger().exception("bad")
        shown = stream.getvalue().splitlines()
        assert shown[1] == "Traceback (most recent call last):"
        assert shown[-1].startswith("ValueError")
        assert "'amqp://baton:***@host'" in shown[-1]
