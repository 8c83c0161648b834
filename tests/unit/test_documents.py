"""Documents agree with each other and with the tree."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "documents").rglob("*.md")])
TRANSLATIONS = [path for path in DOCUMENTS if path.name.endswith(".ru.md")]

FAILURE_MODES = ROOT / "documents/failure-modes.md"
ROWS = {"G": 9, "D": 13, "R": 13, "B": 10, "W": 13, "T": 9, "C": 3, "S": 3, "L": 5}
A_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"^```.*?^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def heading_levels(path: Path) -> list[int]:
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]


def items(path: Path) -> int:
    return len(re.findall(r"^(?:- |\| |\d+\. )", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", TRANSLATIONS, ids=name_of)
def test_a_translation_has_the_headings_lists_and_code_of_its_original(path: Path) -> None:
    original = path.with_name(path.name.replace(".ru.md", ".md"))
    assert heading_levels(path) == heading_levels(original)
    assert code_blocks(path) == code_blocks(original)
    assert items(path) == items(original)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_named_are_there(path: Path) -> None:
    named = re.findall(r"`((?:gateway|pipeline|storage|tests|documents)/[\w./-]+)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@cache
def functions_of(path: Path) -> set[str]:
    """Name the tests of a file, also those within classes."""
    if not path.exists():
        return set()
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_tests_that_are_named_are_there(path: Path) -> None:
    named = A_TEST.findall(path.read_text())
    assert [f"{file}::{test}" for file, test in named if test not in functions_of(ROOT / file)] == []


def test_each_failure_mode_has_a_test_or_says_why_it_cannot_happen() -> None:
    rows = re.findall(r"^\| ([A-Z]\d+) \| (.*) \|$", FAILURE_MODES.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [
        f"{group}{number}" for group, count in ROWS.items() for number in range(1, count + 1)
    ]
    assert [name for name, row in rows if not A_TEST.search(row) and "| Cannot happen: " not in row] == []
