"""The embedded PostgreSQL over starts, stops and kills, as the owner of its data would meet them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import psqlpy
import pytest
import structlog

from storage.embedded import PROGRESS_SECONDS, DataFolderLocked, EmbeddedPostgres, ServerFailed
from storage.embedded.programs import as_user
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

OWNER = """
import asyncio, sys
from pathlib import Path
from storage.embedded import EmbeddedPostgres

async def own():
    async with EmbeddedPostgres(Path(sys.argv[1])):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(own())
"""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    for pid in EmbeddedPostgres(folder).processes():
        with suppress(ProcessLookupError):  # it may be on its way out
            os.kill(pid, signal.SIGKILL)
    if (folder / "socket").is_symlink():  # its owner was killed
        shutil.rmtree((folder / "socket").readlink())
    shutil.rmtree(folder)


@asynccontextmanager
async def connected(server: EmbeddedPostgres) -> AsyncIterator[psqlpy.Connection]:
    connection = await psqlpy.connect(
        host=server.host, port=server.port, username=server.user, db_name=server.database
    )
    try:
        yield connection
    finally:
        connection.close()


async def write(server: EmbeddedPostgres, number: int) -> None:
    async with connected(server) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS mark (n int)")
        await connection.execute("INSERT INTO mark VALUES ($1)", [number])


async def read(server: EmbeddedPostgres) -> list[int]:
    async with connected(server) as connection:
        rows = await connection.execute("SELECT n FROM mark ORDER BY n")
        return [row["n"] for row in rows.result()]


def start_owner(data: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OWNER, str(data)], stdout=subprocess.PIPE, text=True)


def kill_owner(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.communicate()


def sleep_as(user: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*as_user(user, dies_by="KILL"), "sleep", "60"])


async def owned_by_another_process(data: Path) -> subprocess.Popen[str]:
    """Write one row, then let another process own the server."""
    async with EmbeddedPostgres(data) as server:
        await write(server, 1)
    owner = start_owner(data)
    assert owner.stdout
    assert owner.stdout.readline() == "up\n"
    return owner


async def test_the_first_start_makes_everything(data: Path) -> None:
    async with EmbeddedPostgres(data) as server, connected(server) as connection:
        shown = {}
        for name in ("server_encoding", "lc_messages", "fsync", "jit", "listen_addresses", "server_version"):
            shown[name] = (await connection.execute(f"SHOW {name}")).result()[0][name]
        assert shown.pop("server_version").startswith("18.")
        assert shown == {
            "server_encoding": "UTF8",
            "lc_messages": "C",
            "fsync": "on",
            "jit": "off",
            "listen_addresses": "",
        }
        assert os.fspath((data / "socket").readlink()) == server.host
        assert (data / "socket").stat().st_mode & 0o777 == 0o700
        assert os.getsid(server.processes()[0]) != os.getsid(0), "Ctrl-C would reach it"
        folder = (data / "socket").readlink()
    assert server.processes() == []
    assert not folder.exists()


async def test_a_second_start_says_who_holds_the_folder(data: Path) -> None:
    owner = await owned_by_another_process(data)
    try:
        with pytest.raises(DataFolderLocked) as caught:
            await EmbeddedPostgres(data).__aenter__()
    finally:
        kill_owner(owner)
    assert f"{data} is in use by process {owner.pid} since 20" in str(caught.value)
    assert "storage.embedded" in str(caught.value), "the command"


async def test_data_survive_a_stop(data: Path) -> None:
    for number in (1, 2):
        async with EmbeddedPostgres(data) as server:
            await write(server, number)
    async with EmbeddedPostgres(data) as server:
        assert await read(server) == [1, 2]


async def test_data_survive_kill_9_of_server_and_owner(data: Path) -> None:
    owner = await owned_by_another_process(data)
    server = EmbeddedPostgres(data)
    for pid in server.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    kill_owner(owner)
    assert (data / "cluster" / "postmaster.pid").exists(), "it was no orderly end"
    async with server:
        assert await read(server) == [1]


async def test_the_server_ends_when_its_owner_is_killed(data: Path) -> None:
    owner = await owned_by_another_process(data)
    server = EmbeddedPostgres(data)
    assert server.processes()
    kill_owner(owner)
    await eventually(lambda: not server.processes())
    old = (data / "socket").readlink()
    async with server:
        assert await read(server) == [1]
        assert not old.exists()


async def test_a_server_left_behind_is_ended_first(data: Path) -> None:
    owner = await owned_by_another_process(data)
    server = EmbeddedPostgres(data)
    for _ in range(2):  # the second round finds what was forked meanwhile
        for pid in server.processes():
            with suppress(ProcessLookupError):  # a backend may be on its way out
                os.kill(pid, signal.SIGSTOP)  # so that it cannot follow its owner
    kill_owner(owner)
    left = server.processes()
    assert left
    with structlog.testing.capture_logs() as logs:
        async with server:
            assert await read(server) == [1]
            assert not set(server.processes()) & set(left)
    assert ("embedded PostgreSQL left behind", left) in [(line["event"], line.get("pids")) for line in logs]


async def test_a_pid_file_whose_pid_now_belongs_to_another_process_is_no_hindrance(data: Path) -> None:
    async with EmbeddedPostgres(data) as server:
        await write(server, 1)
        pid_file = (data / "cluster" / "postmaster.pid").read_text()
        user = server._owner()
    other = sleep_as(user)
    try:
        stale = pid_file.replace(pid_file.splitlines()[0], str(other.pid), 1)
        (data / "cluster" / "postmaster.pid").write_text(stale)
        async with EmbeddedPostgres(data) as server:
            assert await read(server) == [1]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_a_killed_initdb_is_started_over(data: Path) -> None:
    owner = start_owner(data)
    await eventually((data / "cluster.new" / "PG_VERSION").exists)
    kill_owner(owner)
    assert not (data / "cluster").exists()
    async with EmbeddedPostgres(data) as server:
        await write(server, 1)
        assert await read(server) == [1]
    assert not (data / "cluster.new").exists()


async def test_the_path_may_be_long(data: Path) -> None:
    async with EmbeddedPostgres(data / ("long" * 40)) as server:
        await write(server, 1)
        assert await read(server) == [1]


async def test_data_of_another_version_are_refused_with_a_remedy(data: Path) -> None:
    async with EmbeddedPostgres(data) as server:
        pass
    (data / "cluster" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ServerFailed, match="incompatible with server; name another data folder"):
        await server.__aenter__()
    assert not (data / "socket").is_symlink()


async def test_a_crashed_server_can_be_started_again_where_it_was(data: Path) -> None:
    async with EmbeddedPostgres(data) as server:
        await write(server, 1)
        host = server.host
        await server.stop(immediate=True)
        assert server.processes() == []
        await server.start()
        assert server.host == host
        assert await read(server) == [1]


async def test_a_long_recovery_shows_its_progress(tmp_path: Path) -> None:
    recover = f"""
        [ "$1" = --single ] && exit
        echo "redo in progress"; sleep {PROGRESS_SECONDS + 0.5}
        printf '%s\\n' $$ 2 3 4 5 6 7 ready > "$2/postmaster.pid"; exec sleep 60"""
    (tmp_path / "initdb").write_text('#!/bin/sh\nmkdir "${1#--pgdata=}"\n')
    (tmp_path / "postgres").write_text(f"#!/bin/sh\n{recover}\n")
    for program in ("initdb", "postgres"):
        (tmp_path / program).chmod(0o755)
    with structlog.testing.capture_logs() as logs:
        async with EmbeddedPostgres(tmp_path / "data", binaries=tmp_path):
            pass
    told = {"event": "embedded PostgreSQL recovers", "seconds": 5, "said": "redo in progress"}
    assert logs == [{**told, "log_level": "info"}]
