"""Documents that are written by programs."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def between(document: str, begin: str, end: str, text: str) -> str:
    """Put a text between its marks; raises ValueError where the document lacks one."""
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the document lacks {begin!r} or {end!r} after it")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def paragraph(words: str) -> str:
    """Break lines; an empty one follows."""
    return fill(words, width=112) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay rows out; an empty line follows."""
    head, *body = (f"| {' | '.join(map(str, line))} |\n" for line in (heads, *rows))
    return "".join((head, f"|{'---|' * len(heads)}\n", *body))
