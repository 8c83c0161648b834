"""The handlers of a process, found in the modules its settings name."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.handlers.definition import Handler
from pipeline.handlers.errors import HandlersError, tell
from pipeline.handlers.http_request import http_request

if TYPE_CHECKING:
    from types import ModuleType

BUILTIN = "pipeline.handlers.builtin"


class Handlers(Mapping[str, Handler[..., Any]]):
    """Handlers by kind; `modules` and `http_allow_private_addresses` are what a child process loads them by.

    Raises HandlersError, naming every problem.
    """

    def __init__(
        self,
        handlers: Iterable[Handler[..., Any]],
        modules: Iterable[str] = (),
        *,
        http_allow_private_addresses: bool = False,
    ) -> None:
        distinct = list(dict.fromkeys(handlers))
        problems = [*_problems(distinct)]
        if problems:
            raise HandlersError(tuple(problems))
        self.modules = tuple(modules)
        self.http_allow_private_addresses = http_allow_private_addresses
        self._by_kind = {each.kind: each for each in sorted(distinct, key=lambda each: each.kind)}

    def __getitem__(self, kind: str) -> Handler[..., Any]:
        return self._by_kind[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_kind)

    def __len__(self) -> int:
        return len(self._by_kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds, sorted."""
        return tuple(self._by_kind)


def load(module_names: Iterable[str], *, http_allow_private_addresses: bool = False) -> Handlers:
    """Import modules and collect the handlers at their top level, besides the built-in ones.

    They are searched in the working directory too, where the settings are. A script does not have it on its
    path; it goes to the end, where nothing in it hides what is installed.
    `http_allow_private_addresses` lets `http.request` call what is not on the public internet.
    Raises HandlersError, naming every problem of every module.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    names = tuple(dict.fromkeys((BUILTIN, *module_names)))
    found: list[Handler[..., Any]] = [http_request(allow_private_addresses=http_allow_private_addresses)]
    problems: list[str] = []
    for name in names:
        try:
            its_own = _handlers_of(importlib.import_module(name))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - importing runs user code
            problems.append(f"{name}: cannot be imported: {_explain(error)}")
            continue
        if not its_own:
            problems.append(f'{name}: has no handler; a function becomes one by @handler("some.kind")')
        found += its_own
    try:
        handlers = Handlers(found, names, http_allow_private_addresses=http_allow_private_addresses)
    except HandlersError as error:
        problems += error.problems
    else:
        if not problems:
            return handlers
    raise HandlersError(tuple(problems))


def _handlers_of(module: ModuleType) -> list[Handler[..., Any]]:
    return [value for value in vars(module).values() if isinstance(value, Handler)]


def _problems(handlers: list[Handler[..., Any]]) -> Iterator[str]:
    first: dict[str, Handler[..., Any]] = {}
    for each in handlers:
        yield from each.problems()
        other = first.setdefault(each.kind, each)
        if other is not each:
            yield f"{each.where}: kind {each.kind!r} is taken by {other.where}; each kind has one handler"


def _explain(error: BaseException) -> str:
    text = tell(error)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    own = [frame for frame in frames if frame.filename != __file__]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text
