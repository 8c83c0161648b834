"""What psqlpy says, text only, and what a caller may do next. The texts were taken from the real thing."""

from __future__ import annotations

import asyncio

import pytest
from psqlpy.exceptions import (
    BaseConnectionPoolError,
    ConnectionClosedError,
    ConnectionExecuteError,
    DatabaseError,
)

from storage.database import Address, Database, classify
from storage.errors import (
    Closed,
    LockTimeout,
    OutcomeUnknown,
    Refused,
    SchemaMismatch,
    StorageError,
    Unavailable,
)
from storage.ledger import PostgresLedger


def answered(message: str) -> ConnectionExecuteError:
    """The error of a statement that the server has answered."""
    return ConnectionExecuteError(f"Cannot execute query, error - db error: ERROR: {message}")


def connecting(message: str) -> BaseConnectionPoolError:
    return BaseConnectionPoolError(
        f"Database engine pool exception: Error occurred while creating a new object: {message}"
    )


@pytest.mark.parametrize(
    "message",
    [
        'invalid byte sequence for encoding "UTF8": 0x00',
        "invalid input syntax for type json\nDETAIL: Unicode low surrogate must follow a high surrogate.",
        "unsupported Unicode escape sequence\nDETAIL: \\u0000 cannot be converted to text.",
        "incorrect binary data format in bind parameter 1",
        'duplicate key value violates unique constraint "q_pkey"\nDETAIL: Key (a)=(1) already exists.',
        'new row for relation "q" violates check constraint "q_a_check"\nDETAIL: Failing row contains (9).',
        'null value in column "a" violates not-null constraint\nDETAIL: Failing row contains (null).',
        "value too long for type character varying(3)",
        "bigint out of range",
        "integer out of range",
        "invalid memory alloc request size 1073741824",
        "index row requires 12016 bytes, maximum size is 8191",
        'index row size 2976 exceeds btree version 4 maximum 2704 for index "idempotency_keys_pkey"',
        "string is too long for tsvector (1048601 bytes, max 1048575 bytes)",
    ],
)
def test_data_that_postgresql_refuses_is_refused(message: str) -> None:
    failure = classify(answered(message))
    assert type(failure) is Refused
    assert str(failure) == message


class PanicException(BaseException):
    """What psqlpy raises where its Rust code panics; that of pyo3 cannot be imported."""


@pytest.mark.parametrize(
    "error",
    [
        UnicodeEncodeError("utf-8", "a\ud800b", 1, 2, "surrogates not allowed"),
        OverflowError("Python int too large to convert to C long"),
        TypeError("'str' object cannot be interpreted as an integer"),
        PanicException("Number exceeds maximum value that can be represented."),
    ],
)
def test_data_that_does_not_even_leave_the_driver_is_refused(error: BaseException) -> None:
    assert type(classify(error)) is Refused


@pytest.mark.parametrize(
    "message",
    [
        "canceling statement due to statement timeout",
        "canceling statement due to user request",
        "deadlock detected\nDETAIL: Process 3065 waits for ShareLock on transaction 5637; blocked by 3066.",
        "could not serialize access due to concurrent update",
        'could not extend file "base/5/16402": No space left on device\nHINT: Check free disk space.',
        'could not write to file "base/pgsql_tmp/pgsql_tmp3.0": No space left on device',
        "out of shared memory\nHINT: You might need to increase max_locks_per_transaction.",
        "out of memory\nDETAIL: Failed on request of size 8388608.",
        "cannot execute UPDATE in a read-only transaction",
        "cached plan must not change result type",
    ],
)
def test_what_the_server_rolled_back_was_not_written(message: str) -> None:
    assert type(classify(answered(message))) is Unavailable


@pytest.mark.parametrize(
    "message",
    [
        "error connecting to server: Connection refused (os error 111)",
        "error connecting to server: No such file or directory (os error 2)",
        'db error: FATAL: database "nodb" does not exist',
        'db error: FATAL: password authentication failed for user "baton"',
        "db error: FATAL: the database system is starting up",
        "db error: FATAL: sorry, too many clients already",
    ],
)
def test_without_a_connection_nothing_was_written(message: str) -> None:
    failure = classify(connecting(message))
    assert type(failure) is Unavailable
    assert str(failure) == f"cannot connect to PostgreSQL: {message}"


@pytest.mark.parametrize(
    "message", ["canceling statement due to lock timeout", 'could not obtain lock on row in relation "t"']
)
def test_a_lock_that_another_holds_is_told_apart(message: str) -> None:
    assert type(classify(answered(message))) is LockTimeout


@pytest.mark.parametrize(
    "message",
    [
        'relation "tasks" does not exist',
        'column "nope" does not exist\nHINT: Perhaps you meant to reference the column "t.name".',
        "function nope(integer) does not exist\nHINT: No function matches the given name.",
    ],
)
def test_a_schema_that_does_not_fit_names_the_remedy(message: str) -> None:
    failure = classify(DatabaseError(f"db error: ERROR: {message}"))
    assert type(failure) is SchemaMismatch
    assert "`baton migrate`" in str(failure)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionExecuteError(
            "Cannot execute query, error - "
            "db error: FATAL: terminating connection due to administrator command"
        ),
        DatabaseError("connection closed"),
        ConnectionClosedError("Underlying connection is returned to the pool"),
        ConnectionExecuteError(
            "Cannot execute query, error - error communicating with the server: unexpected"
        ),
    ],
)
def test_a_connection_lost_in_between_leaves_the_outcome_unknown(error: BaseException) -> None:
    assert type(classify(error)) is OutcomeUnknown


@pytest.mark.parametrize("message", ["division by zero", "permission denied for table tasks", "boom"])
def test_an_error_of_ours_is_neither_the_data_nor_the_database(message: str) -> None:
    assert type(classify(answered(message))) is StorageError


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("canceling statement due to statement timeout", Refused),
        ("canceling statement due to lock timeout", Refused),
        ("deadlock detected", Refused),
        ('relation "tasks" does not exist', Refused),
    ],
)
def test_what_a_caller_wrote_does_not_pass_for_what_the_server_says(told: str, kind: type) -> None:
    quoted = f'new row for relation "q" violates check constraint "c"\nDETAIL: Failing row contains ({told}).'
    assert type(classify(answered(quoted))) is kind
    assert type(classify(answered(f'invalid input syntax for type uuid: "{told}"'))) is kind
    assert (
        type(classify(answered(f'null value in column "a"\nDETAIL: Failing row contains ({told})')))
        is StorageError
    )


@pytest.mark.parametrize(
    "error", [Closed("stopping"), asyncio.CancelledError(), KeyboardInterrupt(), MemoryError()]
)
def test_what_is_not_the_drivers_stays_what_it_is(error: BaseException) -> None:
    assert classify(error) is error


async def test_a_call_that_the_driver_cancels_has_an_unknown_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    async def let_down(**_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("psqlpy.connect", let_down)
    database = Database(Address(host="127.0.0.1", port=1, user="u", password="", database="d"))
    with pytest.raises(Unavailable):  # no connection: nothing can have been written
        await database.fetch("SELECT 1")
    with pytest.raises(OutcomeUnknown):
        await database._finish(let_down(), asyncio.get_running_loop().time() + 1)


class TestLanguage:
    """Errors are told apart by their English text."""

    @pytest.fixture
    def ledger(self, monkeypatch: pytest.MonkeyPatch, language: str) -> PostgresLedger:
        async def answer(_: Database, sql: str) -> list[tuple[str]]:
            assert "lc_messages" in sql
            return [(language,)]

        async def fits(_: Database, *, beside_newer: bool = False) -> None:
            pass

        monkeypatch.setattr(Database, "fetch", answer)
        monkeypatch.setattr("storage.ledger.check", fits)
        return PostgresLedger(Address(host="h", port=1, user="u", password="", database="jobs"))

    @pytest.mark.parametrize("language", ["C", "C.UTF-8", "POSIX", "en_US.utf8", "en_GB", "English_UK", ""])
    async def test_a_server_that_speaks_english_is_ready(self, ledger: PostgresLedger) -> None:
        await ledger.ready()

    @pytest.mark.parametrize("language", ["de_DE.UTF-8", "ru_RU.UTF-8", "ca_ES", "Czech_Czechia"])
    async def test_another_language_is_named_with_its_remedy(
        self, ledger: PostgresLedger, language: str
    ) -> None:
        with pytest.raises(StorageError, match="ALTER DATABASE \"jobs\" SET lc_messages TO 'C'") as caught:
            await ledger.ready()
        assert language in str(caught.value)
