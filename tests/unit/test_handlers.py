"""Declaring handlers, loading them, reading payloads, writing results."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest

from pipeline.handlers import Handler, Handlers, HandlersError, PayloadInvalid, handler, load
from pipeline.handlers.definition import Mode, Policy
from pipeline.handlers.errors import ResultInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.handlers import Context

    Declare = Callable[[str, str], str]


class Address(msgspec.Struct):
    street: str


class Person(msgspec.Struct, forbid_unknown_fields=True):
    address: Address
    age: int = 0

    def __post_init__(self) -> None:
        if self.age > 150:
            raise ValueError("nobody is as old as that")
        if self.age < 0:
            raise LookupError("age is unborn")


@dataclasses.dataclass
class Point:
    x: int


class Options(TypedDict):
    loud: bool


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Explosive(msgspec.Struct):
    def __post_init__(self) -> None:
        raise BadText


@handler("person.greet", timeout_seconds=30, max_retries=5, version=2)
async def greet(person: Person, ctx: Context) -> str:
    return f"{person.address.street} {ctx.attempt}"


@handler("point.move", cpu=True)
def move(point: Point) -> int:
    return point.x + 1


@handler("anything")
def anything(payload):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - a handler without annotations
    return payload


def test_a_handler_can_be_called_like_its_function() -> None:
    assert move(Point(1)) == 2
    assert move.where == f"{__name__}.move"


def test_policies_say_where_and_how_a_kind_runs() -> None:
    assert greet.policy == Policy(30, 5, 2, Mode.ASYNC)
    assert move.policy == Policy(None, None, 1, Mode.PROCESS)
    assert anything.policy.mode is Mode.THREAD


@pytest.mark.parametrize(
    ("payload_type", "payload", "value"),
    [
        (Person, b'{"address":{"street":"x"}}', Person(Address("x"))),
        (Point, b'{"x":1}', Point(1)),
        (Options, b'{"loud":true}', {"loud": True}),
        (dict[str, int], b'{"a":1}', {"a": 1}),
        (Any, b"[1,null]", [1, None]),
    ],
)
def test_payloads_are_read_as_the_type_of_the_annotation(
    payload_type: Any, payload: bytes, value: object
) -> None:
    assert _taking(payload_type).decode(payload) == value


def test_a_payload_without_annotation_is_anything() -> None:
    assert anything.decode(b'{"a":[1]}') == {"a": [1]}
    assert anything.schema == {}


@pytest.mark.parametrize(
    ("payload", "path", "message"),
    [
        (b'{"address":{"street":1}}', "$.address.street", "Expected `str`, got `int`"),
        (b'{"address":{}}', "$.address", "Object missing required field `street`"),
        (b"[]", "$", "Expected `object`, got `array`"),
        (b'{"address":', "$", "Input data was truncated"),
        (b"", "$", "Input data was truncated"),
        (b'{"address":{"street":"\xff"}}', "$", "JSON is not valid UTF-8: invalid start byte, byte 0"),
        (b'{"address":{"street":""},"age":151}', "$", "nobody is as old as that"),
        (b'{"address":{"street":""},"age":-1}', "$", "LookupError: age is unborn"),
        (b'{"address":{"street":""},"x":1}', "$", "Object contains unknown field `x`"),
    ],
)
def test_a_payload_that_does_not_fit_names_the_field(payload: bytes, path: str, message: str) -> None:
    with pytest.raises(PayloadInvalid) as caught:
        greet.decode(payload)
    assert (caught.value.path, caught.value.message) == (path, message)


def test_a_deep_payload_is_invalid_and_no_crash() -> None:
    with pytest.raises(PayloadInvalid, match="nested too deeply"):
        anything.decode(b"[" * 100_000)


def test_a_payload_is_invalid_also_when_its_type_raises_something_that_has_no_text() -> None:
    with pytest.raises(PayloadInvalid, match="BadText"):
        _taking(Explosive).decode(b"{}")


def test_results_become_json_text() -> None:
    assert anything.encode(None) == "null"
    assert anything.encode(Point(1)) == '{"x":1}'
    assert anything.encode("ä\x00") == '"ä\\u0000"'


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (object(), "Encoding objects of type object is unsupported"),
        ("\ud800", "surrogates not allowed"),
        (_endless(), "RecursionError"),
        ("x" * 1024 * 1024, "1048578 bytes of JSON; allowed: 1048576"),
    ],
)
def test_a_result_that_cannot_be_kept_is_refused(result: object, message: str) -> None:
    with pytest.raises(ResultInvalid, match=message):
        anything.encode(result)


def test_the_largest_result_fits() -> None:
    assert len(anything.encode("x" * (1024 * 1024 - 2))) == 1024 * 1024


def test_handlers_are_a_mapping_sorted_by_kind() -> None:
    handlers = Handlers([move, greet, greet])
    assert handlers.kinds == ("person.greet", "point.move")
    assert handlers["point.move"] is move
    assert handlers.get("nobody") is None
    assert len(handlers) == 2
    assert handlers["person.greet"].schema["$defs"]["Address"]["required"] == ["street"]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Write an importable module."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(name: str, source: str) -> str:
        head = "from __future__ import annotations\nfrom pipeline.handlers import handler\n"
        (tmp_path / f"{name}.py").write_text(head + textwrap.dedent(source))
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_load_collects_the_handlers_of_modules_and_the_built_in_ones(declare: Declare) -> None:
    name = declare(
        "shop_orders",
        """
        from typing import TYPE_CHECKING
        from pipeline.handlers.builtin import echo
        if TYPE_CHECKING:
            from pipeline.handlers import Context
        @handler("order.pay")
        async def pay(payload: dict[str, int], ctx: Context) -> None: ...
        again = pay
        """,
    )
    handlers = load([name, name])
    assert handlers.kinds == ("echo", "fail", "http.request", "order.pay", "sleep")
    assert handlers.modules == ("pipeline.handlers.builtin", name)


def test_modules_are_found_in_the_working_directory_after_all_others(
    declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = declare("shop_here", '@handler("order.here")\ndef here(payload): ...')
    elsewhere = [entry for entry in sys.path if entry != str(tmp_path)]
    monkeypatch.setattr(sys, "path", [*elsewhere])
    monkeypatch.chdir(tmp_path)
    assert "order.here" in load([name])
    load([name])
    assert sys.path == [*elsewhere, str(tmp_path)]


def test_load_tells_all_problems_together(declare: Declare) -> None:
    first = declare("shop_first", '@handler("order.pay")\ndef pay(payload): ...')
    second = declare(
        "shop_second",
        """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from decimal import Decimal
        @handler("order.pay")
        def pay(payload): ...
        @handler("Order.Pay")
        def capitals(payload): ...
        @handler("none")
        def none(): ...
        @handler("three")
        def three(a, b, c): ...
        @handler("star")
        def star(*payload): ...
        @handler("keyword")
        def keyword(payload, *, ctx): ...
        @handler("hidden")
        def hidden(payload: Decimal): ...
        @handler("unreadable")
        def unreadable(payload: object): ...
        @handler("stream")
        async def stream(payload): yield 1
        @handler("policy", timeout_seconds=0, max_retries=101, version=0)
        def policy(payload): ...
        """,
    )
    broken = declare("shop_broken", "1 / 0")
    leaving = declare("shop_leaving", "import sys\nsys.exit('bye')")
    empty = declare("shop_empty", "")
    with pytest.raises(HandlersError) as caught:
        load([first, second, broken, leaving, empty, "shop_absent"])
    lines = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 16, lines
    for expected in (
        "shop_broken: cannot be imported: ZeroDivisionError: division by zero (",
        "shop_broken.py, line 3)",
        "shop_leaving: cannot be imported: SystemExit: bye",
        "shop_empty: has no handler",
        "shop_absent: cannot be imported: ModuleNotFoundError: No module named 'shop_absent'\n",
        "shop_second.pay: kind 'order.pay' is taken by shop_first.pay",
        "shop_second.capitals: kind 'Order.Pay'; allowed: up to 100 characters",
        "shop_second.none: takes (); allowed: (payload) or (payload, ctx)",
        "shop_second.three: takes (a, b, c)",
        "shop_second.star: takes (*payload)",
        "shop_second.keyword: takes (payload, *, ctx)",
        "shop_second.hidden: the payload's type is not known at run time: name 'Decimal' is not defined",
        "shop_second.unreadable: the payload's type cannot be read from JSON",
        "shop_second.stream: is a generator",
        "shop_second.policy: timeout_seconds=0; allowed: 0.1 to 86400",
        "shop_second.policy: max_retries=101; allowed: 0 to 100",
        "shop_second.policy: version=0; allowed: 1 to 2147483647",
    ):
        assert expected in lines, lines


def test_one_module_that_is_missing_is_enough_to_refuse_all() -> None:
    with pytest.raises(HandlersError, match="shop_absent"):
        load(["shop_absent"])


@pytest.mark.parametrize("kind", ["a", "a.b", "a_1.b-2.c", "0", "x" * 100])
def test_kinds_that_are_allowed(kind: str) -> None:
    assert Handlers([_named(kind)]).kinds == (kind,)


@pytest.mark.parametrize("kind", ["", "A", "a.", ".a", "a..b", "a-b", "a b", "a\n", "ä", "x" * 101])
def test_kinds_that_are_not(kind: str) -> None:
    with pytest.raises(HandlersError, match="allowed"):
        Handlers([_named(kind)])


def _named(kind: str) -> Handler[..., Any]:
    return handler(kind)(lambda payload: payload)


def _taking(payload_type: Any) -> Handler[..., Any]:
    def take(payload: Any) -> Any:
        return payload

    take.__annotations__["payload"] = payload_type
    return handler("take")(take)
