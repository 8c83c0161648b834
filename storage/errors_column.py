"""The `errors` column: a JSON array that PostgreSQL appends to and we only read."""

from __future__ import annotations

import msgspec

from storage.model import ErrorEntry

_decoder = msgspec.json.Decoder(tuple[ErrorEntry, ...])


def decode_errors(text: str | None) -> tuple[ErrorEntry, ...]:
    """Read a task's history of failed runs; empty where nothing has failed yet."""
    return _decoder.decode(text) if text else ()
