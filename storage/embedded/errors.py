"""What keeps the embedded PostgreSQL from being had.

EmbeddedError
├── DataFolderLocked    another process holds the data folder; the message says which
└── ServerFailed        initdb or postgres ended, or would not end; the message says why
"""

from __future__ import annotations

from storage.errors import StorageError


class EmbeddedError(StorageError):
    """The embedded PostgreSQL cannot be had."""


class DataFolderLocked(EmbeddedError):
    """Another process holds the data folder."""


class ServerFailed(EmbeddedError):
    """A program of PostgreSQL did not do what it was started for."""
