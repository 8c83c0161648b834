"""What the embedded PostgreSQL says when it cannot be had, with programs that only pretend."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from storage.embedded import DataFolderLocked, EmbeddedError, EmbeddedPostgres, ServerFailed

if TYPE_CHECKING:
    from pathlib import Path


def pretend(folder: Path, **programs: str) -> Path:
    """Make a folder of shell scripts named like the programs of PostgreSQL."""
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


async def failure(data: Path, binaries: Path) -> EmbeddedError:
    with pytest.raises(EmbeddedError) as caught:
        await EmbeddedPostgres(data, binaries=binaries).__aenter__()
    assert "\n" not in str(caught.value)
    return caught.value


INITDB = 'mkdir -p "${1#--pgdata=}"'


async def test_a_full_disk_is_named_with_its_remedy(tmp_path: Path) -> None:
    script = 'echo "FATAL:  could not write: No space left on device"; echo "removing all"; exit 1'
    error = await failure(tmp_path / "data", pretend(tmp_path / "bin", initdb=script))
    assert isinstance(error, ServerFailed)
    assert str(error) == (
        f"initdb in {tmp_path}/data failed: FATAL: could not write: No space left on device; "
        f"free some space on that disk (more in postgres.log there)"
    )


async def test_a_change_of_user_that_is_not_permitted_is_named_with_its_remedy(tmp_path: Path) -> None:
    script = 'echo "setpriv: setresuid failed: Operation not permitted" >&2; exit 127'
    error = await failure(tmp_path / "data", pretend(tmp_path / "bin", initdb=script))
    assert "Operation not permitted; start as an ordinary user" in str(error)


async def test_the_last_of_several_complaints_counts(tmp_path: Path) -> None:
    script = 'echo "FATAL:  old"; echo "FATAL:  new"; echo "LOG:  bye"; exit 1'
    error = await failure(tmp_path / "data", pretend(tmp_path / "bin", initdb=INITDB, postgres=script))
    assert "postgres in" in str(error)
    assert "FATAL: new" in str(error)


async def test_a_failed_start_leaves_neither_lock_nor_half_a_cluster(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await failure(data, pretend(tmp_path / "bin", initdb=INITDB, postgres="exit 1"))
    assert not (data / "cluster").exists()
    again = await failure(data, tmp_path / "bin")
    assert not isinstance(again, DataFolderLocked)


async def test_programs_that_are_not_there_are_named(tmp_path: Path) -> None:
    error = await failure(tmp_path / "data", tmp_path / "nowhere")
    assert f"{tmp_path}/nowhere/initdb: No such file or directory (more in" in str(error), "no remedy"


async def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    error = await failure(tmp_path / "data", tmp_path)
    assert str(error) == f"{tmp_path}/data: File exists"


async def test_the_data_folder_is_closed_to_others_and_its_parents_are_left_alone(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o700)
    await failure(parent / "data", pretend(tmp_path / "bin", initdb="exit 1"))
    assert (parent / "data").stat().st_mode & 0o777 == 0o700
    assert parent.stat().st_mode & 0o777 == 0o700


async def test_a_long_log_is_put_aside_at_the_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "postgres.log").touch()
    os.truncate(data / "postgres.log", 9 << 20)
    await failure(data, pretend(tmp_path / "bin", initdb="echo new; exit 1"))
    assert (data / "postgres.log").read_text() == "new\n"
    assert (data / "postgres.log.1").stat().st_size == 9 << 20
