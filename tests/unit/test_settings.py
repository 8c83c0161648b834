from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.pretty import pretty_repr

from pipeline.settings import (
    Loaded,
    LogFormat,
    LogLevel,
    Role,
    Settings,
    SettingsError,
    Source,
    describe,
    load,
)
from pipeline.settings.fields import FIELDS
from pipeline.settings.forms import mask_url

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
# Every one of these is changed by dynaconf's casts, or makes it abort.
ODD_TEXTS = [
    "0123",
    "1e5",
    "1_000",
    "true",
    "True",
    "@int x",
    "@int 5",
    "@format {env[HOME]}",
    "@none",
    "{a=1}",
]
ODD_TEXTS += ["a#b", "[1]", "ü", "a=b", "$HOME", "${HOME}", r"a\nb", "dynaconf_merge"]
TOKEN = "t" * 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def problems(folder: Path, environ: Mapping[str, str] | None = None, **options: bool) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(folder, environ or {}, **options)
    assert str(caught.value).split("\n") == list(caught.value.problems)
    return list(caught.value.problems)


def from_environment(folder: Path, name: str, text: str) -> Any:
    loaded = load(folder, {name: text})
    assert loaded.origins[name] == Source.ENVIRONMENT
    return getattr(loaded.settings, name.lower())


def from_dotenv(folder: Path, name: str, line: str) -> Any:
    (folder / ".env").write_text(f"{name}={line}\n", "utf-8")
    loaded = load(folder, {})
    assert loaded.origins[name] == Source.DOTENV
    return getattr(loaded.settings, name.lower())


def from_toml(folder: Path, name: str, value: str) -> Any:
    (folder / "settings.toml").write_text(f"{name} = {value}\n", "utf-8")
    loaded = load(folder, {})
    assert loaded.origins[name] == Source.TOML
    return getattr(loaded.settings, name.lower())


class TestSources:
    def test_nothing_written_anywhere_gives_the_defaults(self, folder: Path) -> None:
        assert load(folder, {}) == Loaded(Settings(), dict.fromkeys(FIELDS, Source.DEFAULT))

    def test_the_environment_wins_over_dotenv_over_toml_over_the_default(self, folder: Path) -> None:
        (folder / "settings.toml").write_text(
            'POSTGRES_DB = "toml"\nPOSTGRES_USER = "toml"\nHOST = "localhost"'
        )
        (folder / ".env").write_text("POSTGRES_DB=dotenv\nPOSTGRES_USER=dotenv\n")
        loaded = load(folder, {"POSTGRES_DB": "environ"})
        assert loaded.settings.postgres_db == "environ"
        assert loaded.settings.postgres_user == "dotenv"
        assert loaded.settings.host == "localhost"
        assert loaded.settings.port == 8000
        names = ("POSTGRES_DB", "POSTGRES_USER", "HOST", "PORT")
        assert [loaded.origins[name] for name in names] == ["environment", ".env", "settings.toml", "default"]

    def test_a_repeated_value_still_comes_from_the_strongest_source(self, folder: Path) -> None:
        (folder / "settings.toml").write_text("PORT = 8000")
        (folder / ".env").write_text("PORT=8000")
        assert load(folder, {"PORT": "8000"}).origins["PORT"] == Source.ENVIRONMENT
        assert load(folder, {}).origins["PORT"] == Source.DOTENV

    def test_dotenv_may_be_left_out(self, folder: Path) -> None:
        (folder / ".env").write_text("PORT=1\nUNKNOWN=1\nbroken")
        assert load(folder, {}, use_dotenv=False).settings.port == 8000

    def test_only_the_given_folder_is_searched(self, folder: Path) -> None:
        below = folder / "below"
        below.mkdir()
        for parent in (folder, folder / "config", below / "config"):
            parent.mkdir(exist_ok=True)
            (parent / ".env").write_text("PORT=1")
            (parent / "settings.toml").write_text("PORT = 1")
        (below / "settings.local.toml").write_text("PORT = 1")
        (below / ".secrets.toml").write_text("PORT = 1")
        assert load(below, {}).settings.port == 8000

    def test_the_working_directory_and_the_environment_of_the_process_are_the_defaults(
        self, folder: Path
    ) -> None:
        (folder / ".env").write_text("POSTGRES_USER=dotenv")
        done = run("print(load().settings.postgres_user, load().settings.port)", folder, {"PORT": "81"})
        assert done.stdout == "dotenv 81\n", done.stderr

    def test_reading_leaves_the_environment_of_the_process_alone(self, folder: Path) -> None:
        (folder / ".env").write_text(f"POSTGRES_USER={folder.name}")
        assert load(folder, {}).settings.postgres_user == folder.name
        assert folder.name not in os.environ.values()

    def test_foreign_variables_and_switches_of_dynaconf_do_no_harm(self, folder: Path) -> None:
        (folder / "settings.toml").write_text('POSTGRES_USER = "@int y"')
        (folder / "other.toml").write_text("PORT = 1")
        (folder / "dynaconf_hooks.py").write_text("raise SystemExit('ran')")
        foreign = {
            "X": "@int abc",
            "Y": "@json {",
            "POSTGRES_PASSWORD": "@int x",
            "POSTGRES_DB__A": "1",
            "AUTO_CAST_FOR_DYNACONF": "true",
            "LOAD_DOTENV_FOR_DYNACONF": "true",
            "MERGE_ENABLED_FOR_DYNACONF": "true",
            "SETTINGS_FILE_FOR_DYNACONF": str(folder / "other.toml"),
            "INCLUDES_FOR_DYNACONF": f'["{folder}/other.toml"]',
        }
        code = "s = load().settings; print(s.postgres_password, s.postgres_user, s.postgres_db, s.port)"
        assert run(code, folder, foreign).stdout == "@int x @int y baton 8000\n"

    def test_a_folder_called_like_a_file_is_none_of_ours(self, folder: Path) -> None:
        (folder / ".env").mkdir()
        (folder / "settings.toml").mkdir()
        assert load(folder, {}).settings == Settings()

    def test_a_folder_may_have_an_odd_name(self, folder: Path) -> None:
        odd = folder / "a.toml,b [c]*"
        odd.mkdir()
        (odd / "settings.toml").write_text("PORT = 1")
        (odd / ".env").write_text("MAX_RETRIES=1")
        loaded = load(odd, {}).settings
        assert (loaded.port, loaded.max_retries) == (1, 1)

    def test_settings_toml_takes_names_in_any_case(self, folder: Path) -> None:
        (folder / "settings.toml").write_text("port = 1")
        assert load(folder, {}).settings.port == 1

    def test_names_in_the_environment_are_upper_case(self, folder: Path) -> None:
        assert load(folder, {"port": "1", "Port": "2"}).settings.port == 8000


def run(code: str, folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"from pipeline.settings import load; {code}"]
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(
        command, cwd=folder, env=clean, capture_output=True, text=True, timeout=30, check=False
    )


class TestTextArrivesAsWritten:
    @pytest.mark.parametrize("text", [*ODD_TEXTS, "'q'", '"q"', "", " a ", "a #b", "line\nbreak"])
    def test_in_the_environment(self, folder: Path, text: str) -> None:
        assert from_environment(folder, "POSTGRES_PASSWORD", text) == text

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_in_dotenv(self, folder: Path, text: str) -> None:
        assert from_dotenv(folder, "POSTGRES_PASSWORD", text) == text

    @pytest.mark.parametrize("text", [*ODD_TEXTS, '"q"', "", " a ", "a #b", "line\nbreak"])
    def test_in_dotenv_within_quotes(self, folder: Path, text: str) -> None:
        assert from_dotenv(folder, "POSTGRES_PASSWORD", f"'{text}'") == text

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ("'q'", "q"),
            ('"q"', "q"),
            ('"it\'s"', "it's"),
            ("a # remark", "a"),
            ("a b", "a b"),
            ("", ""),
            (" a", "a"),
        ],
    )
    def test_dotenv_follows_the_usual_syntax(self, folder: Path, line: str, text: str) -> None:
        assert from_dotenv(folder, "POSTGRES_PASSWORD", line) == text

    def test_dotenv_knows_export_comments_blank_lines_and_a_byte_order_mark(self, folder: Path) -> None:
        (folder / ".env").write_text("\ufeffPORT=1\r\n\n# HOST=no\nexport POSTGRES_DB=x\n", "utf-8")
        loaded = load(folder, {}).settings
        assert (loaded.port, loaded.postgres_db, loaded.host) == (1, "x", "127.0.0.1")

    @pytest.mark.parametrize("text", [*ODD_TEXTS, '"q"', "", " a ", "a #b"])
    def test_in_toml(self, folder: Path, text: str) -> None:
        assert from_toml(folder, "POSTGRES_PASSWORD", f"'{text}'") == text

    def test_in_all_at_once_the_stronger_replaces_the_weaker(self, folder: Path) -> None:
        (folder / "settings.toml").write_text('POSTGRES_PASSWORD = "@merge toml"\nHANDLERS = ["a.b"]')
        (folder / ".env").write_text("POSTGRES_PASSWORD=@merge dotenv\nHANDLERS=c.d")
        loaded = load(folder, {"POSTGRES_PASSWORD": "@merge environ"}).settings
        assert (loaded.postgres_password, loaded.handlers) == ("@merge environ", ("c.d",))


ACCEPTED: list[tuple[str, str, object]] = [
    ("POSTGRES_DB", "a b", "a b"),
    ("POSTGRES_USER", "x" * 63, "x" * 63),
    ("POSTGRES_HOST", "postgres", "postgres"),
    ("POSTGRES_HOST", "/run/a folder", "/run/a folder"),
    ("POSTGRES_HOST", "::1", "::1"),
    ("POSTGRES_HOST", "my_db.example-1.org", "my_db.example-1.org"),
    ("POSTGRES_PORT", "1", 1),
    ("POSTGRES_PORT", "65535", 65535),
    ("POSTGRES_POOL_SIZE", "2", 2),
    ("POSTGRES_POOL_SIZE", "100", 100),
    ("RABBITMQ_URL", "amqp://guest:guest@rabbitmq:5672/", "amqp://guest:guest@rabbitmq:5672/"),
    ("RABBITMQ_URL", "amqps://u:p%40ss@h/vhost?heartbeat=5", "amqps://u:p%40ss@h/vhost?heartbeat=5"),
    ("RABBITMQ_URL", "amqp://[::1]", "amqp://[::1]"),
    ("DATA_DIR", "/var/lib/baton", Path("/var/lib/baton")),
    ("ROLE", "all", frozenset(Role)),
    ("ROLE", "ALL", frozenset(Role)),
    ("ROLE", "worker", frozenset({Role.WORKER})),
    ("ROLE", "dead-letter, Relay", frozenset({Role.RELAY, Role.DEAD_LETTER})),
    ("HANDLERS", "", ()),
    ("HANDLERS", "shop.mail, shop_2", ("shop.mail", "shop_2")),
    ("WORKER_QUEUES", "tasks.low", ("tasks.low",)),
    ("WORKER_QUEUES", "tasks.low,tasks.high", ("tasks.low", "tasks.high")),
    ("WORKER_PREFETCH", "1", 1),
    ("WORKER_PREFETCH", "1000", 1000),
    ("WORKER_CONCURRENCY", "1", 1),
    ("WORKER_CONCURRENCY", "10000", 10_000),
    ("WORKER_LEASE_SECONDS", "2", 2.0),
    ("WORKER_LEASE_SECONDS", "3600", 3600.0),
    ("TASK_TIMEOUT_SECONDS", "0.1", 0.1),
    ("TASK_TIMEOUT_SECONDS", "86400", 86_400.0),
    ("DRAIN_SECONDS", "0", 0.0),
    ("DRAIN_SECONDS", "3600.0", 3600.0),
    ("MAX_RETRIES", "0", 0),
    ("MAX_RETRIES", "100", 100),
    ("RETRY_DELAYS_SECONDS", "1", (1,)),
    ("RETRY_DELAYS_SECONDS", "86400,5, 5", (86_400, 5, 5)),
    ("OUTBOX_POLL_INTERVAL", "0.01", 0.01),
    ("OUTBOX_POLL_INTERVAL", "60", 60.0),
    ("OUTBOX_BATCH_SIZE", "1", 1),
    ("OUTBOX_BATCH_SIZE", "5000", 5000),
    ("OUTBOX_MAX_ATTEMPTS", "1", 1),
    ("OUTBOX_MAX_ATTEMPTS", "1000", 1000),
    ("HOST", "localhost", "localhost"),
    ("HOST", "::1", "::1"),
    ("HOST", "127.8.8.8", "127.8.8.8"),
    ("PORT", "0", 0),
    ("PORT", "65535", 65_535),
    ("API_TOKENS", "", ()),
    ("API_TOKENS", f"{TOKEN}, !~{TOKEN}", (TOKEN, f"!~{TOKEN}")),
    *(("ALLOW_ANONYMOUS", text, True) for text in ("true", "TRUE", "True", "yes", "on", "On", "1")),
    *(("ALLOW_ANONYMOUS", text, False) for text in ("false", "False", "no", "NO", "off", "0")),
    ("REQUEST_TIMEOUT_SECONDS", "0.5", 0.5),
    ("REQUEST_TIMEOUT_SECONDS", "600", 600.0),
    ("MAX_WAITING_TASKS", "0", 0),
    ("MAX_WAITING_TASKS", "10000000", 10_000_000),
    ("IDEMPOTENCY_TTL_SECONDS", "1", 1),
    ("IDEMPOTENCY_TTL_SECONDS", "31536000", 31_536_000),
    ("RETENTION_SECONDS", "0", 0),
    ("RETENTION_SECONDS", "315360000", 315_360_000),
    ("METRICS_HOST", "0.0.0.0", "0.0.0.0"),
    ("METRICS_PORT", "9464", 9464),
    ("LOG_FORMAT", "json", LogFormat.JSON),
    ("LOG_FORMAT", "Console", LogFormat.CONSOLE),
    ("LOG_LEVEL", "WARNING", LogLevel.WARNING),
    ("EMBEDDED", "true", True),
    ("HTTP_ALLOW_PRIVATE_ADDRESSES", "yes", True),
]

NO_NUMBERS = (
    "",
    " 5",
    "5 ",
    "+5",
    "-5",
    "05",
    "1_0",
    "1e1",
    "0x5",
    "five",
    "\u0665",
    "5\n",
    "true",
    "inf",
    "nan",
    "9" * 5000,
)
WHOLE = {
    "POSTGRES_PORT": ("0", "65536"),
    "POSTGRES_POOL_SIZE": ("1", "101"),
    "WORKER_PREFETCH": ("0", "1001"),
    "WORKER_CONCURRENCY": ("0", "10001"),
    "MAX_RETRIES": ("-1", "101"),
    "OUTBOX_BATCH_SIZE": ("0", "5001"),
    "OUTBOX_MAX_ATTEMPTS": ("0", "1001"),
    "PORT": ("-1", "65536"),
    "METRICS_PORT": ("-1", "65536"),
    "MAX_WAITING_TASKS": ("-1", "10000001"),
    "IDEMPOTENCY_TTL_SECONDS": ("0", "31536001"),
    "RETENTION_SECONDS": ("-1", "315360001"),
}
DECIMAL = {
    "WORKER_LEASE_SECONDS": ("1.9", "3600.1"),
    "TASK_TIMEOUT_SECONDS": ("0.09", "86401"),
    "DRAIN_SECONDS": ("-0.1", "3601"),
    "OUTBOX_POLL_INTERVAL": ("0.001", "60.5"),
    "REQUEST_TIMEOUT_SECONDS": ("0", "601"),
}
REFUSED: list[tuple[str, str]] = [
    *((name, text) for name, ends in WHOLE.items() for text in (*NO_NUMBERS, *ends, "5.0")),
    *((name, text) for name, ends in DECIMAL.items() for text in (*NO_NUMBERS, *ends, "5.", ".5", "1e400")),
    *(
        (name, text)
        for name in ("EMBEDDED", "ALLOW_ANONYMOUS", "HTTP_ALLOW_PRIVATE_ADDRESSES")
        for text in ("", "2", "t", "enabled", " true")
    ),
    *((name, text) for name in ("POSTGRES_DB", "POSTGRES_USER") for text in ("", "x" * 64, "ü" * 32)),
    *((name, "\udcff") for name in ("POSTGRES_DB", "POSTGRES_PASSWORD", "DATA_DIR")),
    *(
        (name, text)
        for name in ("POSTGRES_HOST", "HOST", "METRICS_HOST")
        for text in ("", "a b", "-a", "h:5", "http://h", "h/", "[::1]")
    ),
    ("POSTGRES_HOST", "run/postgresql"),
    ("HOST", "/run"),
    *(
        ("RABBITMQ_URL", text)
        for text in (
            "",
            "rabbitmq",
            "rabbitmq:5672",
            "http://rabbitmq:15672/",
            "amqp://",
            "amqp:/h",
            "amqp://u:p@",
            "amqp://h:x/",
            "amqp://h:0/",
            "amqp://h:65536/",
            "amqp://h/ü",
            "amqp://h/a b",
            " amqp://h/",
            "amqp://h/\n",
            "amqp://[::1/",
            "amqp://u:pa@ss@h/",
            "amqp://u:12/a@h/",
            "amqp://u:12?a@h/",
            "amqp://u:12#a@h/",
            "amqp://h/v#a",
        )
    ),
    ("DATA_DIR", ""),
    *(("ROLE", text) for text in ("", ",", "boss", "worker,", "worker,worker", "all,worker", "worker relay")),
    *(("HANDLERS", text) for text in (",", "a,,b", "a.", ".a", "a-b", "a b", "1a", "a,a", "a/b.py")),
    *(
        ("WORKER_QUEUES", text)
        for text in (",", "high", "tasks.dlq", "tasks.low,tasks.low", "tasks.high,", "[]", "Tasks.low")
    ),
    *(
        ("RETRY_DELAYS_SECONDS", text)
        for text in ("", ",", "0", "86401", "5,", "5,,30", "1.5", "1_0", "5 30", "[5]")
    ),
    *(
        ("API_TOKENS", text)
        for text in ("t" * 15, f"{TOKEN},", f"{TOKEN},{TOKEN}", f"t {TOKEN}", f"{TOKEN}ü")
    ),
    *(("LOG_FORMAT", text) for text in ("", "xml", " json")),
    *(("LOG_LEVEL", text) for text in ("", "loud", "30")),
]


class TestForms:
    @pytest.mark.parametrize(("name", "text", "value"), ACCEPTED)
    def test_accepted_text_becomes_the_value(self, folder: Path, name: str, text: str, value: object) -> None:
        found = from_environment(folder, name, text)
        assert found == value
        assert type(found) is type(value)

    @pytest.mark.parametrize(("name", "text"), REFUSED)
    def test_refused_text_is_one_problem_that_says_what_is_allowed(
        self, folder: Path, name: str, text: str
    ) -> None:
        shown = FIELDS[name].form.mask(text)
        line = f"{name}={shown!r} (environment): allowed: {FIELDS[name].form.allowed}"
        assert problems(folder, {name: text}) == [line]

    def test_every_setting_is_tried_both_ways(self) -> None:
        assert {name for name, _, _ in ACCEPTED} | {"POSTGRES_PASSWORD"} == set(FIELDS)
        assert {name for name, _ in REFUSED} == set(FIELDS)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("PORT", "5", 5),
            ("PORT", "1_000", 1000),
            ("PORT", '"5"', 5),
            ("DRAIN_SECONDS", "5", 5.0),
            ("DRAIN_SECONDS", "0.5", 0.5),
            ("EMBEDDED", "true", True),
            ("EMBEDDED", "1", True),
            ("EMBEDDED", '"on"', True),
            ("RETRY_DELAYS_SECONDS", "[5, 30]", (5, 30)),
            ("RETRY_DELAYS_SECONDS", '["5"]', (5,)),
            ("RETRY_DELAYS_SECONDS", '"5,30"', (5, 30)),
            ("HANDLERS", '["a.b", "c"]', ("a.b", "c")),
            ("HANDLERS", "[]", ()),
            ("API_TOKENS", f'["{TOKEN}"]', (TOKEN,)),
            ("ROLE", '["worker", "relay"]', frozenset({Role.WORKER, Role.RELAY})),
            ("WORKER_QUEUES", '["tasks.low"]', ("tasks.low",)),
        ],
    )
    def test_toml_may_say_it_in_its_own_types(
        self, folder: Path, name: str, value: str, expected: object
    ) -> None:
        found = from_toml(folder, name, value)
        assert found == expected
        assert type(found) is type(expected)

    @pytest.mark.parametrize(
        ("name", "value", "shown"),
        [
            ("PORT", "true", "True"),
            ("PORT", "5.0", "5.0"),
            ("PORT", "[5]", "[5]"),
            ("PORT", "1979-05-27", "datetime.date(1979, 5, 27)"),
            ("PORT", "{ a = 1 }", "{'a': 1}"),
            ("PORT", '"1_000"', "'1_000'"),
            ("DRAIN_SECONDS", "inf", "inf"),
            ("DRAIN_SECONDS", "true", "True"),
            ("EMBEDDED", "2", "2"),
            ("POSTGRES_DB", "5", "5"),
            ("POSTGRES_DB", '"a\\u0000"', r"'a\x00'"),
            ("POSTGRES_PASSWORD", "12345", "********"),
            ("RETRY_DELAYS_SECONDS", "[]", "[]"),
            ("RETRY_DELAYS_SECONDS", "5", "5"),
            ("RETRY_DELAYS_SECONDS", "[true]", "[True]"),
            ("RETRY_DELAYS_SECONDS", "[5.0]", "[5.0]"),
            ("HANDLERS", '["a,b"]', "['a,b']"),
            ("HANDLERS", "[true]", "[True]"),
            ("HANDLERS", '[["a"]]', "[['a']]"),
            ("API_TOKENS", '["secret"]', "********"),
            ("RABBITMQ_URL", '["amqp://u:secret@h"]', "********"),
        ],
    )
    def test_toml_of_another_type_is_refused(self, folder: Path, name: str, value: str, shown: str) -> None:
        (folder / "settings.toml").write_text(f"{name} = {value}")
        line = f"{name}={shown} (settings.toml): allowed: {FIELDS[name].form.allowed}"
        assert problems(folder) == [line]

    @pytest.mark.parametrize("name", FIELDS)
    def test_writing_is_the_inverse_of_reading(self, name: str) -> None:
        form, default = FIELDS[name].form, getattr(Settings(), FIELDS[name].attribute)
        assert form.read(form.write(default)) == default
        assert type(form.read(form.write(default))) is type(default)


class TestProblems:
    def test_all_are_told_together_each_with_its_source(self, folder: Path) -> None:
        (folder / "settings.toml").write_text("MAX_RETRIES = 101\nPORTS = 1")
        (folder / ".env").write_text("OUTBOX_BATCH_SIZE=1_000\nHOSTS=x\nbroken\n")
        environ = {"WORKER_PREFETCH": "1e3", "HOST": "0.0.0.0", "EMBEDDED": "true", "ROLE": "gateway"}
        assert problems(folder, environ) == [
            f"{folder}/.env line 3: allowed: NAME=value or NAME='value'",
            "'PORTS' (settings.toml): no such setting; allowed: the known names, the nearest is PORT",
            "'HOSTS' (.env): no such setting; allowed: the known names, the nearest is HOST",
            "WORKER_PREFETCH='1e3' (environment): allowed: a whole number from 1 to 1000",
            "MAX_RETRIES=101 (settings.toml): allowed: a whole number from 0 to 100",
            "OUTBOX_BATCH_SIZE='1_000' (.env): allowed: a whole number from 1 to 5000",
            (
                "HOST='0.0.0.0' (environment): beyond this machine the gateway listens only with API_TOKENS"
                " or ALLOW_ANONYMOUS=true; allowed without: 127.0.0.1, ::1, localhost"
            ),
            (
                "ROLE='gateway' (environment): with EMBEDDED the broker lives in the memory of one process,"
                " so that process needs every role that uses it;"
                " allowed: all, or these too: relay, worker, dead-letter, janitor"
            ),
        ]

    @pytest.mark.parametrize(
        ("written", "nearest"),
        [
            ("POSTGRES_PASWORD", "POSTGRES_PASSWORD"),
            ("RABBITMQ_URI", "RABBITMQ_URL"),
            ("port", "PORT"),
            ("Worker_Prefetch", "WORKER_PREFETCH"),
            ("WORKER_PREFETCH_COUNT", "WORKER_PREFETCH"),
        ],
    )
    def test_an_unknown_name_in_dotenv_is_told_without_its_value(
        self, folder: Path, written: str, nearest: str
    ) -> None:
        (folder / ".env").write_text(f"{written}=secret")
        (line,) = problems(folder)
        assert (
            line == f"{written!r} (.env): no such setting; allowed: the known names, the nearest is {nearest}"
        )

    @pytest.mark.parametrize(
        "key",
        [
            "POSTGRES_PASWORD",
            "default",
            "loaders",
            "validators",
            "__core__",
            "STORE",
            '"a.b"',
            "POSTGRES_DB__A",
        ],
    )
    def test_an_unknown_name_in_toml_is_told(self, folder: Path, key: str) -> None:
        (folder / "settings.toml").write_text(f'{key} = "secret"\nPORT = 81')
        (line,) = problems(folder)
        assert line.upper().startswith(f"{key.strip(chr(34)).upper()!r} (SETTINGS.TOML): NO SUCH SETTING; ")
        assert "secret" not in line

    def test_a_table_in_toml_is_an_unknown_name(self, folder: Path) -> None:
        (folder / "settings.toml").write_text("[default]\nPORT = 1")
        (line,) = problems(folder)
        assert line.startswith("'DEFAULT' (settings.toml): no such setting")

    @pytest.mark.parametrize("name", ["PORT.x", "x\ny"])
    def test_an_odd_name_stays_on_one_line(self, folder: Path, name: str) -> None:
        (folder / ".env").write_text(f"'{name}'=1")
        assert len(problems(folder)) == 1

    @pytest.mark.parametrize(
        "line", ["POSTGRES_DB", "PORT='1", 'PORT="1', "POSTGRES_DB='a'b", "=1", "POSTGRES_DB=a  b"]
    )
    def test_a_line_of_dotenv_that_cannot_be_read_is_told_by_number(self, folder: Path, line: str) -> None:
        (folder / ".env").write_text(f"# remark\n\n\n{line}\nMAX_RETRIES=x\n")
        told = problems(folder)
        assert told[0] == f"{folder}/.env line 4: allowed: NAME=value or NAME='value'"
        assert told[1].startswith("MAX_RETRIES='x' (.env)")

    @pytest.mark.parametrize(
        "text", [b"PORT =", b"PORT = 0123", b"PORT = 1\nPORT = 2", b"POSTGRES_DB = '\xff'"]
    )
    def test_a_broken_toml_is_told_beside_the_other_problems(self, folder: Path, text: bytes) -> None:
        (folder / "settings.toml").write_bytes(text)
        broken, port = problems(folder, {"PORT": "x"})
        assert broken.startswith(f"{folder}/settings.toml: ")
        assert broken.endswith("; allowed: a TOML file in UTF-8")
        assert port.startswith("PORT='x'")

    def test_a_dotenv_in_another_encoding_is_told(self, folder: Path) -> None:
        (folder / ".env").write_bytes(b"POSTGRES_PASSWORD=\xff")
        (line,) = problems(folder)
        assert line.startswith(f"{folder}/.env: ")
        assert line.endswith("; allowed: a text file in UTF-8")

    @pytest.mark.parametrize("name", [".env", "settings.toml"])
    def test_a_file_that_cannot_be_read_is_told(self, folder: Path, name: str) -> None:
        # Reading the first page of one's own memory fails for root as well.
        (folder / name).symlink_to("/proc/self/mem")
        (line,) = problems(folder)
        assert line.startswith(f"{folder}/{name}: [Errno 5]")


class TestRules:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org"])
    def test_beyond_this_machine_the_gateway_needs_tokens_or_leave(self, folder: Path, host: str) -> None:
        (line,) = problems(folder, {"HOST": host})
        assert line.startswith(f"HOST={host!r} (environment): beyond this machine")
        assert load(folder, {"HOST": host, "API_TOKENS": TOKEN}).settings.host == host
        assert load(folder, {"HOST": host, "ALLOW_ANONYMOUS": "yes"}).settings.host == host
        assert load(folder, {"HOST": host, "ROLE": "relay,worker"}).settings.host == host

    @pytest.mark.parametrize("bad", [{"API_TOKENS": "short"}, {"ALLOW_ANONYMOUS": "x"}, {"ROLE": "x"}])
    def test_a_rule_is_silent_where_a_setting_it_reads_is_refused(
        self, folder: Path, bad: dict[str, str]
    ) -> None:
        assert len(problems(folder, {"HOST": "0.0.0.0", **bad})) == 1

    @pytest.mark.parametrize("missing", [role for role in Role if role is not Role.GATEWAY])
    def test_embedded_needs_all_roles_of_the_broker_in_the_process(self, folder: Path, missing: Role) -> None:
        (line,) = problems(folder, {"EMBEDDED": "1", "ROLE": ",".join(r for r in Role if r is not missing)})
        assert "(environment): with EMBEDDED the broker lives in the memory of one process" in line
        assert line.endswith(f"allowed: all, or these too: {missing}")

    @pytest.mark.parametrize("role", ["all", "relay,worker,dead-letter,janitor"])
    def test_embedded_does_without_the_gateway(self, folder: Path, role: str) -> None:
        assert load(folder, {"EMBEDDED": "1", "ROLE": role}).settings.embedded

    def test_a_worker_needs_a_queue_and_others_do_not(self, folder: Path) -> None:
        (line,) = problems(folder, {"WORKER_QUEUES": ""})
        assert line.startswith(
            "WORKER_QUEUES='' (environment): the worker role needs at least one queue; allowed: "
        )
        assert load(folder, {"WORKER_QUEUES": "", "ROLE": "gateway"}).settings.worker_queues == ()


class TestSecrets:
    SECRETS = {  # noqa: RUF012 - a constant
        "POSTGRES_PASSWORD": "s3cret",
        "RABBITMQ_URL": "amqp://baton:s3cret@rabbitmq:5672/vhost",
        "API_TOKENS": "s3cret-s3cret-s3cret,s3cret-s3cret-other",
    }

    def test_they_are_in_the_settings_but_in_nothing_that_is_shown(self, folder: Path) -> None:
        loaded = load(folder, self.SECRETS)
        assert loaded.settings.postgres_password == "s3cret"
        shown = {row.name: row.value for row in describe(loaded)}
        assert shown["RABBITMQ_URL"] == "amqp://baton:********@rabbitmq:5672/vhost"
        assert (shown["POSTGRES_PASSWORD"], shown["API_TOKENS"]) == ("********", "********")
        for text in (
            repr(loaded),
            str(loaded.settings),
            f"{loaded.settings}",
            pretty_repr(loaded),
            str(shown),
        ):
            assert "s3cret" not in text

    def test_an_empty_secret_is_shown_empty(self, folder: Path) -> None:
        shown = {row.name: row.value for row in describe(load(folder, {}))}
        assert (shown["POSTGRES_PASSWORD"], shown["API_TOKENS"]) == ("", "")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("POSTGRES_PASSWORD", "s3cret\udcff"),
            ("API_TOKENS", "s3cret"),
            ("RABBITMQ_URL", "http://u:s3cret@h/"),
        ],
    )
    def test_a_refused_secret_is_not_told(self, folder: Path, name: str, text: str) -> None:
        (line,) = problems(folder, {name: text})
        assert line.startswith(f"{name}='")
        assert "s3cret" not in line
        assert "********" in line

    def test_a_secret_in_a_broken_line_of_dotenv_is_not_told(self, folder: Path) -> None:
        (folder / ".env").write_text("POSTGRES_PASSWORD='s3cret")
        assert "s3cret" not in problems(folder)[0]

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("amqp://u:s3cret@h:5672/", "amqp://u:********@h:5672/"),
            ("amqp://u:a@s3cret@h", "amqp://u:********@h"),
            ("amqp://u:a/s3cret@h", "amqp://u:********@h"),
            ("amqp://u:a://s3cret@h", "amqp://u:********@h"),
            ("amqp://u:s3cret\n@h", "amqp://u:********@h"),
            ("amqp://:s3cret@h", "amqp://:********@h"),
            ("u:s3cret@h", "u:********@h"),
            ("u:a://s3cret@h", "u:********@h"),
            ("amqp://u:s3cret", "amqp://********"),
            ("u:s3cret", "********"),
            ("s3cret", "********"),
            ("", ""),
            ("amqp://h:5672/v", "amqp://h:5672/v"),
            ("amqp://[::1]:5672/", "amqp://[::1]:5672/"),
            ("amqp://u@h/", "amqp://u@h/"),
        ],
    )
    def test_a_url_keeps_its_password_to_itself(self, url: str, shown: str) -> None:
        assert mask_url(url) == shown


class TestDescribe:
    def test_it_shows_every_setting_with_name_value_source_and_meaning(self, folder: Path) -> None:
        rows = describe(load(folder, {"ROLE": "relay,gateway", "DRAIN_SECONDS": "0.5", "EMBEDDED": "off"}))
        assert [row.name for row in rows] == [name.upper() for name in Settings.__struct_fields__]
        assert all(row.meaning and "\n" not in row.meaning for row in rows)
        shown = {row.name: (row.value, row.source) for row in rows}
        assert shown["ROLE"] == ("gateway,relay", "environment")
        assert shown["DRAIN_SECONDS"] == ("0.5", "environment")
        assert shown["EMBEDDED"] == ("false", "environment")
        assert shown["RETRY_DELAYS_SECONDS"] == ("5,30,120", "default")
        assert shown["TASK_TIMEOUT_SECONDS"] == ("300", "default")

    def test_what_it_shows_can_be_written(self, folder: Path) -> None:
        settings = load(folder, {name: text for name, text, _ in ACCEPTED if name != "EMBEDDED"}).settings
        shown = {
            row.name: row.value for row in describe(Loaded(settings, dict.fromkeys(FIELDS, Source.DEFAULT)))
        }
        secret = {"POSTGRES_PASSWORD", "API_TOKENS", "RABBITMQ_URL"}
        again = load(
            folder, {**{n: v for n, v in shown.items() if n not in secret}, "API_TOKENS": TOKEN}
        ).settings
        assert all(
            getattr(again, n.lower()) == getattr(settings, n.lower()) for n in FIELDS if n not in secret
        )

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            Settings().port = 1  # type: ignore[misc]  # the point of the test


class TestShippedFiles:
    # What compose needs instead of the default.
    COMPOSE = {  # noqa: RUF012 - a constant
        "POSTGRES_PASSWORD": "baton",
        "POSTGRES_HOST": "postgres",
        "RABBITMQ_URL": "amqp://guest:guest@rabbitmq:5672/",
        "API_TOKENS": "change-this-token-before-use",
    }

    def test_settings_toml_holds_every_setting_at_its_default(self, folder: Path) -> None:
        (folder / "settings.toml").write_bytes((ROOT / "settings.toml").read_bytes())
        assert load(folder, {}) == Loaded(Settings(), dict.fromkeys(FIELDS, Source.TOML))

    def test_env_example_holds_every_setting_once_and_at_its_default(self) -> None:
        lines = re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
        assert sorted(name for name, _ in lines) == sorted(FIELDS)
        defaults = {
            name: field.form.write(getattr(Settings(), field.attribute)) for name, field in FIELDS.items()
        }
        assert dict(lines) == {**defaults, **self.COMPOSE}

    def test_the_page_tells_every_setting_as_it_is(self) -> None:
        rows = re.findall(r"^\| `[A-Z_]+` \|.*$", (ROOT / "documents/settings.md").read_text(), re.MULTILINE)
        assert sorted(rows) == sorted(self.row(name) for name in FIELDS)

    @staticmethod
    def row(name: str) -> str:
        field = FIELDS[name]
        default = field.form.write(getattr(Settings(), field.attribute))
        return (
            f"| `{name}` | {f'`{default}`' if default else 'none'} | {field.meaning} | {field.form.allowed} |"
        )

    @pytest.mark.parametrize("role", ["all", *Role])
    def test_env_example_need_only_be_renamed(self, folder: Path, role: str) -> None:
        (folder / ".env").write_bytes((ROOT / ".env.example").read_bytes())
        settings = load(folder, {"ROLE": role}).settings
        assert (settings.postgres_host, settings.rabbitmq_url) == ("postgres", self.COMPOSE["RABBITMQ_URL"])

    def test_env_example_may_be_uncommented(self, folder: Path) -> None:
        text = re.sub(r"^#(?=[A-Z_]+=)", "", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
        (folder / ".env").write_text(text)
        assert load(folder, {}).settings.api_tokens == (self.COMPOSE["API_TOKENS"],)

    def test_env_example_sets_what_the_seed_names_and_a_token(self) -> None:
        seed = ["POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_HOST", "POSTGRES_PORT"]
        seed += ["RABBITMQ_URL", "WORKER_QUEUES", "WORKER_PREFETCH", "MAX_RETRIES", "RETRY_DELAYS_SECONDS"]
        seed += ["OUTBOX_POLL_INTERVAL", "OUTBOX_BATCH_SIZE", "OUTBOX_MAX_ATTEMPTS"]
        active = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
        assert active == [*seed, "API_TOKENS"]
