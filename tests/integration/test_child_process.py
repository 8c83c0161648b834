"""Handlers in child processes. This module is also what the children import."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest
import uvloop

from pipeline.handlers import Context, Handler, PayloadInvalid, Permanent, RetryLater, handler, load
from pipeline.handlers.children import InChild
from pipeline.handlers.errors import ChildError, ChildKilled, NotStarted, ResultInvalid
from pipeline.handlers.runners import Runners
from tests.support.endpoint import endpoint
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONTEXT = Context(task_id=UUID(int=7), kind="any", attempt=3, replay=2)


@handler("process", cpu=True)
def process(_: Any) -> int:
    return os.getpid()


@handler("process.async", cpu=True)
async def process_async(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@handler("on.loop")
async def on_loop(_: Any) -> int:
    return os.getpid()


@handler("reverse", cpu=True)
def reverse(text: str) -> str:
    return text[::-1]


@handler("see", cpu=True)
def see(name: str, ctx: Context) -> list[str | None]:
    return [ctx.idempotency_key, os.environ.get(name), os.getcwd()]  # noqa: PTH109 - compared as text


@handler("talk", cpu=True)
def talk(_: Any, ctx: Context) -> None:
    print("printed")  # noqa: T201 - what handlers do
    os.write(1, b"written\n")
    ctx.log.info("logged")


@handler("raise", cpu=True)
def raise_(what: str) -> object:
    match what:
        case "permanent":
            raise Permanent("no use")
        case "later":
            raise RetryLater(12, "busy")
        case "exit":
            sys.exit(4)
        case "object":
            return object()
        case _:
            raise LookupError(what)


@handler("raise.async", cpu=True)
async def raise_async(what: str) -> None:
    raise Permanent(what) if what == "permanent" else KeyboardInterrupt(what)


@handler("read", cpu=True)
def read(_: Any) -> str:
    return sys.stdin.read()


@handler("die", cpu=True)
def die(how: str) -> None:
    faulthandler.disable()  # it would report to the terminal of whoever runs the tests
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


@handler("escape", cpu=True)
def escape(file: str) -> None:
    """Die, and leave a fork in a session of its own."""
    if not os.fork():
        os.setsid()
        _note(file, os.getpid())
        time.sleep(60)
    while not Path(file).exists():
        time.sleep(0.01)
    os._exit(5)


class Hold(msgspec.Struct):
    """Whom to note in which file, and what to hold on to."""

    file: str
    how: str = ""


@handler("hold", cpu=True)
def hold(payload: Hold) -> None:
    pids = [os.getpid()]
    if payload.how == "program":
        pids.append(subprocess.Popen(["sleep", "60"]).pid)
    if payload.how == "no death signal":
        ctypes.CDLL(None).prctl(1, 0)
    _note(payload.file, *pids)
    if payload.how == "interpreter":
        ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock: no other thread of the process runs
    time.sleep(60)


def _note(file: str, *pids: int) -> None:
    unfinished = Path(f"{file}.unfinished")
    unfinished.write_text(" ".join(map(str, pids)))
    unfinished.rename(file)


@handler("leave", cpu=True)
def leave(_: Any) -> int:
    return subprocess.Popen(["sleep", "60"]).pid


@handler("signals", cpu=True)
def signals(_: Any) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    return program.wait()


@pytest.fixture
async def children() -> AsyncIterator[InChild]:
    children = InChild(2, [__name__])
    yield children
    await children.close()
    assert not [pid for pid in _processes_of(os.getpid()) if "pipeline.handlers.child" in _command(pid)]


async def _run(children: InChild, handler: Handler[..., Any], payload: object) -> Any:
    async with asyncio.timeout(20):
        return msgspec.json.decode(await children.run(handler, msgspec.json.encode(payload), CONTEXT))


async def test_a_child_is_used_again(children: InChild) -> None:
    first = await _run(children, process, None)
    assert first != os.getpid()
    assert await _run(children, process, None) == first
    assert await _run(children, process_async, 0) == first


async def test_there_is_one_child_per_slot(children: InChild) -> None:
    pids = await asyncio.gather(*(_run(children, process_async, 0.05) for _ in range(5)))
    assert len(set(pids)) == 2


async def test_context_environment_and_folder_are_the_workers(
    children: InChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", "yes")
    assert await _run(children, see, "SEEN") == [CONTEXT.idempotency_key, "yes", str(Path.cwd())]


async def test_large_payloads_and_results_pass(children: InChild) -> None:
    text = "ab" * 500_000
    assert await _run(children, reverse, text) == text[::-1]


async def test_what_handlers_print_and_log_goes_to_the_workers_stderr(
    capfd: pytest.CaptureFixture[str],
) -> None:
    children = InChild(1, [__name__], log_format="json")
    try:
        await _run(children, talk, None)
    finally:
        await children.close()
    out, err = capfd.readouterr()
    printed, written, logged = sorted(err.splitlines(), key=len)
    assert (out, printed, written) == ("", "printed", "written")
    assert msgspec.json.decode(logged)["task_id"] == str(CONTEXT.task_id)


async def test_stdin_is_empty(children: InChild) -> None:
    assert await _run(children, read, None) == ""


async def test_exceptions_come_out_as_what_they_mean(children: InChild) -> None:
    with pytest.raises(Permanent, match="no use"):
        await _run(children, raise_, "permanent")
    with pytest.raises(RetryLater, match="busy") as later:
        await _run(children, raise_, "later")
    assert later.value.seconds == 12
    with pytest.raises(ResultInvalid):
        await _run(children, raise_, "object")
    with pytest.raises(PayloadInvalid):
        await _run(children, raise_, 1)
    with pytest.raises(ChildError, match="4") as left:
        await _run(children, raise_, "exit")
    assert left.value.type_name == "RuntimeError"
    with pytest.raises(Permanent):
        await _run(children, raise_async, "permanent")
    with pytest.raises(ChildError) as interrupt:
        await _run(children, raise_async, "interrupt")
    assert interrupt.value.type_name == "KeyboardInterrupt"
    with pytest.raises(ChildError, match="odd") as odd:
        await _run(children, raise_, "odd")
    assert odd.value.type_name == "LookupError"
    assert "in raise_" in odd.value.__notes__[0]


async def test_a_kind_the_child_does_not_have_is_an_error_that_says_so(children: InChild) -> None:
    with pytest.raises(ChildError, match=rf"'invoice.render' is not in the modules .*{__name__}"):
        await _run(children, handler("invoice.render", cpu=True)(_here_only), None)


@pytest.mark.parametrize(
    ("how", "exit_code", "number"),
    [
        ("exit", 3, None),
        ("SIGSEGV", None, signal.SIGSEGV),
        ("SIGKILL", None, signal.SIGKILL),
    ],
)
async def test_a_child_that_dies_under_a_task_says_how_and_is_replaced(
    children: InChild, how: str, exit_code: int | None, number: int | None
) -> None:
    first = await _run(children, process, None)
    with pytest.raises(ChildKilled) as killed:
        await _run(children, die, how)
    assert (killed.value.exit_code, killed.value.signal) == (exit_code, number)
    assert await _run(children, process, None) != first


async def test_a_child_killed_while_idle_costs_no_task_its_life(children: InChild) -> None:
    pid = await _run(children, process, None)
    os.kill(pid, signal.SIGKILL)
    _await_end(pid)  # without giving the loop a turn to hear of it
    assert await _run(children, process, None) != pid


async def test_a_fork_that_has_left_the_group_does_not_hide_the_end_of_its_parent(
    children: InChild, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    try:
        with pytest.raises(ChildKilled, match="exit code 5"):
            await _run(children, escape, str(file))
    finally:
        os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("how", ["program", "interpreter"])
async def test_a_cancelled_run_kills_the_child_and_what_it_started(
    children: InChild, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "pids"
    run = asyncio.create_task(_run(children, hold, Hold(str(file), how)))
    await eventually(file.exists)
    pids = [int(pid) for pid in file.read_text().split()]
    assert all(map(_lives, pids))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await eventually(lambda: not any(map(_lives, pids)))
    assert await _run(children, process, None) not in pids


async def test_a_run_cancelled_while_its_child_starts_leaves_nothing(children: InChild) -> None:
    run = asyncio.create_task(_run(children, process, None))
    await eventually(lambda: children._children)
    (child,) = children._children
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await eventually(lambda: not Path(f"/proc/{child.pid}").exists())


async def test_what_a_handler_leaves_behind_ends_with_its_child(children: InChild) -> None:
    child, pid = await _run(children, process, None), await _run(children, leave, None)
    assert _lives(pid)
    os.kill(child, signal.SIGKILL)
    await eventually(lambda: not _lives(pid))


async def test_close_ends_also_what_is_under_way(children: InChild, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    run = asyncio.create_task(_run(children, hold, Hold(str(file))))
    await eventually(file.exists)
    await children.close()
    with pytest.raises(ChildKilled):
        await run


async def test_alone_is_a_fresh_child_that_is_ended_afterwards(children: InChild) -> None:
    used = await _run(children, process, None)
    async with asyncio.timeout(20):
        alone = int(await children.run_alone(process, b"0", CONTEXT))
    assert alone != used
    await eventually(lambda: not Path(f"/proc/{alone}").exists())
    assert await _run(children, process, None) == used


def _starts(folder: Path) -> list[tuple[float, float]]:
    spans = [file.read_text().split() for file in folder.glob("*.start")]
    return [(float(begun), float(ended)) for begun, ended in spans]


async def test_as_many_start_at_a_time_as_there_are_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_to_import.py").write_text(
        "import os, pathlib, time\nfrom pipeline.handlers import handler\nbegun = time.monotonic()\n"
        "time.sleep(0.3)\n"
        "pathlib.Path(__file__).with_name(f'{os.getpid()}.start').write_text(f'{begun} {time.monotonic()}')\n"
        "@handler('slow.to.start', cpu=True)\ndef slow(_): pass\n"
    )
    slow = load(["slow_to_import"])["slow.to.start"]
    processors = len(os.sched_getaffinity(0))
    children = InChild(3 * processors, ["slow_to_import"])
    async with asyncio.timeout(20):
        await asyncio.gather(*(children.run_alone(slow, b"0", CONTEXT) for _ in range(3 * processors)))
    await children.close()
    starts = _starts(tmp_path)
    assert len(starts) == 3 * processors + 1, "each child, and this process"
    together = [sum(begun <= moment < ended for begun, ended in starts) for moment, _ in starts]
    assert max(together) == processors


async def test_runners_choose_the_child_by_mode_or_for_being_alone() -> None:
    handlers = load([__name__])
    async with asyncio.timeout(20), Runners(1, handlers) as runners:
        assert int(await runners.run(handlers["on.loop"], b"0", CONTEXT)) == os.getpid()
        child = int(await runners.run(handlers["process"], b"0", CONTEXT))
        alone = int(await runners.run(handlers["on.loop"], b"0", CONTEXT, alone=True))
        assert len({os.getpid(), child, alone}) == 3
    await eventually(lambda: not Path(f"/proc/{child}").exists())


async def test_children_find_what_the_worker_found_in_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "found_here.py").write_text(
        "from pipeline.handlers import handler\n@handler('here', cpu=True)\ndef here(_): return __name__\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(folder)
    handlers = load(["found_here"])
    # A child is started where the worker is by then, and imports from where the worker did.
    monkeypatch.chdir(tmp_path)
    async with asyncio.timeout(20), Runners(1, handlers) as runners:
        assert await runners.run(handlers["here"], b"0", CONTEXT) == '"found_here"'
    del sys.modules["found_here"]


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_child_calls_the_addresses_that_its_worker_may_call(*, allowed: bool) -> None:
    handlers = load([], http_allow_private_addresses=allowed)
    async with asyncio.timeout(20), endpoint() as there, Runners(1, handlers) as runners:
        payload = msgspec.json.encode({"url": there.url})
        call = runners.run(handlers["http.request"], payload, CONTEXT, alone=True)
        if allowed:
            assert '"status":200' in await call
        else:
            with pytest.raises(Permanent, match="that is not public"):
                await call
    assert len(there.received) == allowed


async def test_signals_meant_for_the_worker_do_not_end_a_task(children: InChild) -> None:
    assert await _run(children, signals, None) == -signal.SIGTERM


async def test_a_start_that_fails_is_told_with_what_the_child_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaves_at_import.py").write_text("import os\nprint('farewell', flush=True)\nos._exit(6)\n")
    (tmp_path / "dies_at_import.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    for module, message in (
        ("absent_module", "exit code 1: absent_module: cannot be imported: ModuleNotFoundError"),
        ("leaves_at_import", r"exit code 6: \(nothing on stderr\)"),
        ("dies_at_import", r"(?s)killed by SIGSEGV \(11\): Fatal Python error.*dies_at_import.py"),
    ):
        children = InChild(1, [module])
        with pytest.raises(NotStarted, match=message):
            await _run(children, process, None)
        await children.close()


async def test_a_folder_named_like_our_package_does_no_harm(
    children: InChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    assert await _run(children, process, None)


@pytest.mark.parametrize("how", ["", "no death signal", "interpreter"])
async def test_no_child_outlives_its_worker(tmp_path: Path, how: str) -> None:
    """A child hears of the end by its socket and, should it hold the interpreter's lock, by the kernel."""
    file = tmp_path / "pid"
    program = (
        "import sys; sys.path[:0] = sys.argv[1].split(':'); import {0}; {0}.hold_in_child(*sys.argv[2:])"
    )
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program.format(__name__), ":".join(sys.path), str(file), how
    )
    await eventually(file.exists, seconds=20)
    child = int(file.read_text())
    assert _lives(child)
    worker.kill()
    await worker.wait()
    await eventually(lambda: not _lives(child))


def hold_in_child(file: str, how: str) -> None:
    """The worker of the test above."""
    asyncio.run(InChild(1, [__name__]).run(hold, msgspec.json.encode(Hold(file, how)), CONTEXT))


def test_it_works_on_uvloop_too(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        children = InChild(2, [__name__])
        text = "ab" * 500_000
        assert await _run(children, reverse, text) == text[::-1]
        with pytest.raises(ChildKilled, match="exit code 3"):
            await _run(children, die, "exit")
        file = tmp_path / "pid"
        run = asyncio.create_task(_run(children, hold, Hold(str(file))))
        await eventually(file.exists)
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled()
        await eventually(lambda: not _lives(int(file.read_text())))
        await _run(children, process, None)
        await children.close()
        assert not children._children

    uvloop.run(all_of_it())


def _here_only(payload: Any) -> Any:
    return payload


def _await_end(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _lives(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        return _stat(pid)[0] not in "ZX"
    except FileNotFoundError:
        return False


def _processes_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(_stat(int(folder.name))[1]) == parent:
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _command(pid: int) -> str:
    """The command line, or for a zombie, which has none any more, a guess that convicts it."""
    return Path(f"/proc/{pid}/cmdline").read_text() or "zombie, perhaps of pipeline.handlers.child"


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
