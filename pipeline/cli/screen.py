"""What commands show: the API's answer as it is for scripts, tables for people."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.progress import TaskID

Item = dict[str, Any]
_WIDEST = 10_000


class Screen:
    """Standard output for answers, standard error for remarks.

    Where nobody looks (a pipe, a file) there are no colours, frames or broken lines.
    """

    def __init__(self, out: Console | None = None, err: Console | None = None) -> None:
        self._out = out or _console(stderr=False)
        self._err = err or _console(stderr=True)

    def script(self, text: str) -> None:
        """Write JSON for scripts, as it came but for escapes of what would steer a terminal."""
        self._out.out(printable(text), highlight=False)

    def say(self, text: str) -> None:
        """Write lines that belong to the answer."""
        self._out.print(_text(text), soft_wrap=True)

    def remark(self, text: str) -> None:
        """Write lines that do not."""
        self._err.print(_text(text), soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, float, float], None]]:
        """Show bars beside the remarks, on a terminal: give stage, done and total to what is lent."""
        from rich.progress import Progress  # noqa: PLC0415 - other commands must not wait for it

        # Seldom: who draws takes time from what is measured.
        bars = Progress(console=self._err, refresh_per_second=2, disable=not self._err.is_terminal)
        stages: dict[str, TaskID] = {}

        def show(stage: str, done: float, total: float) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage)
            bars.update(stages[stage], completed=done, total=total)

        with bars:
            yield show

    def json(self, value: Any) -> None:
        """Write a value as JSON, for people."""
        self.say(json.dumps(value, ensure_ascii=False, indent=2))

    def table(self, items: Sequence[Item], columns: Mapping[str, str], *, titled: bool = True) -> None:
        """Show one line per item; `columns` names what stands above each field, on a terminal always."""
        self._out.print(self._table(items, columns, titled=titled or self._out.is_terminal))

    def card(self, item: Item) -> None:
        """Show one item with all its fields that hold something."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        for name, value in item.items():
            if value not in (None, "", [], {}):
                grid.add_row(name, self._field(name, value))
        self._out.print(grid)

    def _field(self, name: str, value: Any) -> RenderableType:
        if isinstance(value, list) and isinstance(value[0], dict):
            return self._table(value, {key: key for key in value[0]})
        return _text(shown(name, value))

    def _table(self, items: Sequence[Item], columns: Mapping[str, str], *, titled: bool = True) -> Table:
        look = box.SIMPLE_HEAD if self._out.is_terminal else None
        table = Table(box=look, pad_edge=False, header_style="bold", show_header=titled)
        for name, title in columns.items():
            # An id in two pieces cannot be copied.
            table.add_column(title, overflow="fold", no_wrap=name in {"id", "task_id"})
        for item in items:
            table.add_row(*(_text(shown(name, item.get(name))) for name in columns))
        return table


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDEST
    return console


def _text(text: str) -> Text:
    return Text(printable(text))


def shown(name: str, value: Any) -> str:
    """Write a field for people: times to the second and in UTC, what is no text as JSON."""
    if isinstance(value, str):
        return _time(value) if name == "at" or name.endswith("_at") else value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, indent=2 if isinstance(value, dict) else None)


def printable(text: str) -> str:
    """Escape, as JSON does, what would steer the terminal or reorder a line: it is shown, never obeyed."""
    return "".join(char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _time(text: str) -> str:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text
