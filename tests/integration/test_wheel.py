"""The wheel works alone: without the checkout, without settings, and beside strangers."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from typing import TYPE_CHECKING, NamedTuple
from zipfile import ZipFile

import httpx
import pytest

from tests.support.service import Process
from tests.support.waiting import eventually
from tests.support.wheels import Environment, build

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "pipeline", "storage")
STRANGER = "raise RuntimeError('a stranger was imported')"


class Built(NamedTuple):
    """What is published."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(*build(ROOT, tmp_path_factory.mktemp("built")))


@pytest.fixture(scope="module")
def make_environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    def make() -> Environment:
        environment = Environment(tmp_path_factory.mktemp("environment"))
        environment.install(built.wheel)
        return environment

    return make


@pytest.fixture(scope="module")
def environment(make_environment: Callable[[], Environment]) -> Environment:
    return make_environment()


def contents(wheel: Path) -> dict[str, int]:
    """Every file of a wheel, with its checksum."""
    with ZipFile(wheel) as archive:
        return {file.filename: file.CRC for file in archive.infolist()}


def test_the_wheel_holds_the_packages_whole_and_nothing_else(built: Built) -> None:
    inside = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    ours = {str(path.relative_to(ROOT)) for path in inside if path.parent.name != "__pycache__"}
    described = {name for name in contents(built.wheel) if ".dist-info/" in name}
    assert contents(built.wheel).keys() - described == {"baton_tasks.py", *ours}
    assert {f"{package}/py.typed" for package in PACKAGES} <= ours
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in described)


def test_the_sdist_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    # By tar: Python's own needs a filter from 3.14 on, and knows none before 3.11.4.
    (tmp_path / "source").mkdir()
    subprocess.run(
        ["tar", "--extract", "--file", built.sdist, "--directory", tmp_path / "source"], check=True
    )
    (source,) = (tmp_path / "source").iterdir()
    _, wheel = build(source, tmp_path / "built")
    assert contents(wheel) == contents(built.wheel)


def test_an_image_is_given_all_that_the_wheel_is_built_from(built: Built, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        path = ROOT / line.removeprefix("!")
        if path.is_dir():
            copytree(path, source / path.name, ignore=ignore_patterns("__pycache__"))
        elif line.startswith("!"):
            copy(path, source)
    _, wheel = build(source, tmp_path / "built")
    assert contents(wheel) == contents(built.wheel)


def test_nothing_comes_from_the_checkout(environment: Environment, tmp_path: Path) -> None:
    program = "import json, sys; json.dump(sys.path, sys.stdout)"
    path = json.loads(environment.run(environment.python, "-c", program, folder=tmp_path).stdout)
    assert [entry for entry in path if Path(entry).is_relative_to(ROOT)] == []
    told = environment.run(environment.baton, "settings", "--json", folder=tmp_path)
    assert {row["source"] for row in json.loads(told.stdout)["items"]} == {"default"}


async def test_it_runs_a_task_from_an_empty_folder(environment: Environment, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = Process(
            await asyncio.create_subprocess_exec(
                *(environment.baton, "run", "--embedded"),
                cwd=tmp_path,
                env={**environment.variables, "PORT": "0", "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
            ),
            tmp_path / "log",
        )
    try:

        def listening() -> str:
            assert process.process.returncode is None, process.text()
            told = re.search(r"--url (\S+)", process.text())
            return told[1] if told else ""

        url = await eventually(listening, seconds=60)
        submit = (environment.baton, "submit", "echo", '{"hello":"world"}', "--url", url, "--json")
        submitted = await asyncio.to_thread(environment.run, *submit, folder=tmp_path)
        assert submitted.returncode == 0, submitted.stderr
        assert json.loads(submitted.stdout)["status"] == "COMPLETED"
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/docs")).status_code == 200
        assert await process.stop() == 0
    finally:
        await process.kill()


@pytest.mark.parametrize("name", ["pipeline/__init__.py", "storage/__init__.py", "gateway.py"])
def test_a_stranger_on_the_path_is_named_and_never_imported(
    environment: Environment, tmp_path: Path, name: str
) -> None:
    stranger = tmp_path / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text(STRANGER)
    refused = environment.run(environment.baton, "settings", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 1
    assert str(stranger).removesuffix("/__init__.py") in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_stranger_in_the_working_directory_hides_nothing(environment: Environment, tmp_path: Path) -> None:
    stranger = tmp_path / "pipeline" / "__init__.py"
    stranger.parent.mkdir()
    stranger.write_text(STRANGER)
    assert environment.run(environment.baton, "settings", folder=tmp_path).returncode == 0
    # Python itself searches the working directory first for `-m`.
    refused = environment.run(environment.python, "-m", "baton_tasks", "settings", folder=tmp_path)
    assert refused.returncode == 1
    assert f"Python finds {stranger.parent}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_distribution_that_overwrites_ours_is_named_and_never_imported(
    make_environment: Callable[[], Environment], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "pipeline").mkdir(parents=True)
    (source / "pipeline" / "__init__.py").write_text(STRANGER)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "other-pipeline"\nversion = "1.0"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["pipeline"]\n'
    )
    _, wheel = build(source, tmp_path / "built")
    environment = make_environment()
    environment.install(wheel)
    refused = environment.run(environment.baton, "settings", folder=tmp_path)
    assert refused.returncode == 1
    assert "pipeline/__init__.py was overwritten by other-pipeline 1.0" in refused.stderr
    assert "Traceback" not in refused.stderr
