from __future__ import annotations

import base64
import hashlib
import json
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PathDistribution
from typing import TYPE_CHECKING

import pytest

from baton_tasks import PACKAGES, ForeignPackage, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_package(folder: Path, name: str, text: str = "ours") -> Path:
    file = folder / name / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text(f'"""{text}"""')
    return file


def write_metadata(folder: Path, name: str, files: list[str], origin: object = None) -> PathDistribution:
    """Write what an installer leaves of a distribution, checksums as of now."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},{checksum(folder / file)},1\n" for file in files))
    if origin:
        (info / "direct_url.json").write_text(json.dumps(origin))
    return PathDistribution(info)


def checksum(file: Path) -> str:
    return (
        "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
    )


def finder(*path: Path) -> Callable[[str], ModuleSpec | None]:
    """Find packages as Python does with this sys.path."""
    return lambda name: PathFinder.find_spec(name, [str(folder) for folder in path])


def install(folder: Path) -> PathDistribution:
    files = [write_package(folder, name) for name in PACKAGES]
    return write_metadata(folder, "baton-tasks", [str(file.relative_to(folder)) for file in files])


def install_editable(site: Path, checkout: Path) -> PathDistribution:
    for name in PACKAGES:
        write_package(checkout, name)
    origin = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    return write_metadata(site, "baton-tasks", [], origin)


def test_this_environment_passes() -> None:
    check()


def test_an_installed_distribution_passes(tmp_path: Path) -> None:
    check(install(tmp_path), finder(tmp_path))


def test_a_wheel_from_a_local_folder_is_not_editable(tmp_path: Path) -> None:
    ours = install(tmp_path)
    noted = {"url": "file:///somewhere/baton", "dir_info": {}}
    (tmp_path / "baton_tasks-1.0.dist-info" / "direct_url.json").write_text(json.dumps(noted))
    check(ours, finder(tmp_path))


def test_an_editable_install_passes_also_from_a_folder_with_a_space(tmp_path: Path) -> None:
    checkout = tmp_path / "my work"
    check(install_editable(tmp_path / "site", checkout), finder(tmp_path / "site", checkout))


def test_a_folder_earlier_on_the_path_is_named(tmp_path: Path) -> None:
    ours = install(tmp_path / "site")
    intruder = write_package(tmp_path / "project", "gateway", "theirs")
    with pytest.raises(ForeignPackage) as caught:
        check(ours, finder(tmp_path / "project", tmp_path / "site"))
    assert str(intruder.parent) in str(caught.value)
    assert "gateway" in str(caught.value)
    assert "storage" not in str(caught.value)


def test_a_package_before_an_editable_install_is_named(tmp_path: Path) -> None:
    ours = install_editable(tmp_path / "site", tmp_path / "checkout")
    intruder = write_package(tmp_path / "site", "storage", "theirs")
    with pytest.raises(ForeignPackage, match=str(intruder.parent)):
        check(ours, finder(tmp_path / "site", tmp_path / "checkout"))


def test_a_missing_package_is_told(tmp_path: Path) -> None:
    ours = install(tmp_path)
    with pytest.raises(ForeignPackage, match="finds nothing"):
        check(ours, lambda name: None if name == "storage" else finder(tmp_path)(name))


def test_a_distribution_that_overwrote_our_file_is_named(tmp_path: Path) -> None:
    ours = install(tmp_path)
    file = tmp_path / "pipeline" / "__init__.py"
    file.write_text('"""theirs"""')
    write_metadata(tmp_path, "other-pipeline", ["pipeline/__init__.py"])
    with pytest.raises(ForeignPackage) as caught:
        check(ours, finder(tmp_path))
    assert f"{file} was overwritten by other-pipeline 1.0" in str(caught.value)


def test_a_file_changed_by_hand_is_its_owners_business(tmp_path: Path) -> None:
    ours = install(tmp_path)
    (tmp_path / "pipeline" / "__init__.py").write_text('"""patched"""')
    check(ours, finder(tmp_path))


def test_a_file_that_went_with_another_distribution_is_told(tmp_path: Path) -> None:
    file = write_package(tmp_path, "pipeline").with_name("flow.py")
    file.write_text("")
    for name in ("gateway", "storage"):
        write_package(tmp_path, name)
    ours = write_metadata(tmp_path, "baton-tasks", ["pipeline/flow.py"])
    file.unlink()
    with pytest.raises(ForeignPackage, match=r"flow\.py is missing"):
        check(ours, finder(tmp_path))
