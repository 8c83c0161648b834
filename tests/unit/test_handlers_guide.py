"""Every snippet of documents/handlers.md works as it stands there."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from pipeline.handlers import Context, HandlersError, Permanent, RetryLater, load
from pipeline.handlers.runners import OnLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDE = Path(__file__).parents[2] / "documents" / "handlers.md"
SNIPPET = re.compile(r"^```(\w+)\n(?:# (\S+)\n)?(.*?)^```$", re.MULTILINE | re.DOTALL)
CONTEXT = Context(task_id=uuid4(), kind="payment.refund")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the guide's application, its files put together from the snippets."""
    for language, name, text in SNIPPET.findall(GUIDE.read_text()):
        file = tmp_path / (name or language)
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as written:
            written.write(text)
    # The guide's tests folder is moved, for `tests` is also the name of ours.
    (tmp_path / "tests").rename(tmp_path / "shop_tests")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in {"shop", "shop_tests"}]:
        del sys.modules[name]


def _modules(shop: Path) -> list[str]:
    names: list[str] = tomllib.loads((shop / "settings.toml").read_text())["HANDLERS"]
    return names


def test_the_modules_of_its_settings_load(shop: Path) -> None:
    assert {"payment.charge", "payment.refund"} < set(load(_modules(shop)))


def test_its_tests_pass(shop: Path) -> None:
    files = sorted((shop / "shop_tests").glob("test_*.py"))
    assert [file.stem for file in files] == ["test_charge", "test_payload"]
    for file in files:
        for name, test in vars(importlib.import_module(f"shop_tests.{file.stem}")).items():
            if name.startswith("test_"):
                outcome = test()
                if inspect.iscoroutine(outcome):
                    asyncio.run(outcome)


async def test_its_errors_are_raised(shop: Path) -> None:
    refund = load(_modules(shop))["payment.refund"]
    with pytest.raises(RetryLater):
        await OnLoop().run(refund, b'{"order":"busy","cents":1}', CONTEXT)
    with pytest.raises(Permanent, match="order 17 does not exist"):
        await OnLoop().run(refund, b'{"order":"17","cents":1}', CONTEXT)


def test_the_problem_it_quotes_is_told_so(shop: Path) -> None:
    (shop / "shop" / "other.py").write_text((shop / "shop" / "handlers.py").read_text())
    with pytest.raises(HandlersError) as caught:
        load(["shop.handlers", "shop.other"])
    assert (shop / "text").read_text().strip() in caught.value.problems
