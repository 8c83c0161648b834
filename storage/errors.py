"""What can go wrong between us and PostgreSQL, by what the caller may do next.

StorageError
├── Unavailable          nothing was written: no connection, a time-out that the server rolled back
├── OutcomeUnknown       the reply was lost: repeat the same statement, it bears repetition
├── Refused              the data itself cannot be stored: repeating is useless
├── LockTimeout          another transaction holds the row or key: this request alone fails
├── Overloaded           our own queue is full: come back later
├── Closed               this process is stopping
├── SchemaMismatch       the database is older or newer than this code
└── EmbeddedError        the embedded server cannot be had (storage/embedded/)
"""


class StorageError(Exception):
    """The ledger did not answer as asked."""


class Unavailable(StorageError):
    """The database cannot be reached or gave up in time; nothing was written."""


class OutcomeUnknown(StorageError):
    """The connection broke before the reply; the statement may or may not have been carried out."""


class Refused(StorageError):
    """PostgreSQL refuses the data itself, whoever sends it and however often."""


class LockTimeout(StorageError):
    """Another transaction holds a lock that this statement needs; nothing was written."""


class Overloaded(StorageError):
    """More is waiting to be written than this process may hold in memory."""


class Closed(StorageError):
    """The process is stopping and takes nothing on any more."""


class SchemaMismatch(StorageError):
    """The schema of the database does not fit this code; `baton migrate` brings it up to date."""
