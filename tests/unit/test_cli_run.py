from __future__ import annotations

import contextlib
import json
import logging
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from typer.testing import CliRunner

from pipeline.broker import QueueMismatch
from pipeline.cli import app
from pipeline.cli.outside import Outside
from pipeline.handlers.errors import HandlersError
from pipeline.http_server import PortTaken
from pipeline.settings import Settings
from storage.embedded import DataFolderLocked
from storage.errors import SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

NO_SETTINGS: dict[str, str | None] = {name.upper(): None for name in msgspec.structs.asdict(Settings())}
URL = "http://127.0.0.1:8000"
OPERATORS = "http://127.0.0.1:9464"


class Service:
    """Stands for the roles: announces a URL, then ends as told."""

    def __init__(self, url: str | None = URL, failure: BaseException | None = None) -> None:
        self.url = url
        self.failure = failure
        self.settings: Settings | None = None

    async def __call__(self, settings: Settings, announce: Callable[[str, str], None]) -> None:
        self.settings = settings
        if self.url:
            announce(self.url, OPERATORS)
        if self.failure:
            raise self.failure


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    """Work in an empty folder, and leave the logging of the tests as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    with contextlib.chdir(tmp_path):
        yield tmp_path
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def baton(*arguments: str, serve: Any = None, **environ: str) -> Result:
    return CliRunner().invoke(app, arguments, env={**NO_SETTINGS, **environ}, obj=Outside(serve=serve))


def settings_of(service: Service) -> Settings:
    assert service.settings is not None
    return service.settings


class TestRun:
    def test_a_drained_stop_is_a_success(self) -> None:
        service = Service()
        result = baton("run", serve=service, MAX_RETRIES="9")
        assert result.exit_code == 0, result.output
        assert settings_of(service).max_retries == 9
        assert not settings_of(service).embedded

    def test_it_tells_where_everything_is_once_it_listens(self, folder: Path) -> None:
        result = baton("run", "--embedded", serve=Service())
        assert result.stderr == ""
        shown = result.stdout
        assert f"{URL}/api/v1" in shown
        assert f"{folder / '.baton'} (embedded PostgreSQL)" in shown
        assert f"{OPERATORS}/health/ready" in shown
        assert "/documents\n" in shown
        assert """baton submit echo '{"hello":"world"}'""" in shown

    def test_not_before(self) -> None:
        assert baton("run", serve=Service(url=None)).stdout == ""

    def test_the_lines_to_try_are_right(self) -> None:
        service = Service("http://0.0.0.0:9000")
        shown = baton("run", serve=service, API_TOKENS="0123456789abcdef").stdout
        submit, curl = (shlex.split(line.replace("  try", "")) for line in shown.splitlines()[-2:])
        assert submit == ["baton", "submit", "--url", "http://127.0.0.1:9000", "echo", '{"hello":"world"}']
        assert curl[:3] == ["curl", "-H", "Authorization: Bearer $BATON_TOKEN"]
        assert json.loads(curl[curl.index("-d") + 1]) == {"kind": "echo", "payload": {"hello": "world"}}
        assert curl[-1] == "http://127.0.0.1:9000/api/v1/tasks?wait=20"
        assert "export BATON_TOKEN" in shown
        assert "0123456789abcdef" not in shown

    def test_the_line_to_try_names_a_command_that_another_shell_finds(
        self, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there, found = (
            place / "baton"
            for place in (folder / ".venv/bin", *map(tmp_path_factory.mktemp, ("there", "found")))
        )
        found.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(found.parent))
        for script, command in ((here, ".venv/bin/baton"), (there, str(there)), (found, "baton")):
            monkeypatch.setattr("sys.argv", [str(script), "run"])
            assert f" {command} submit " in baton("run", serve=Service()).stdout

    def test_servers_are_named_without_their_passwords(self) -> None:
        shown = baton(
            *("run",),
            serve=Service(),
            POSTGRES_HOST="db",
            POSTGRES_PASSWORD="sesame",
            RABBITMQ_URL="amqp://u:sesame@mq:5672/",
        ).output
        assert "baton@db:5432/baton" in shown
        assert "@mq:5672" in shown
        assert "sesame" not in shown

    def test_a_machine_is_told_in_the_log(self) -> None:
        result = baton("run", serve=Service(), LOG_FORMAT="json")
        assert result.stdout == ""
        line = json.loads(result.stderr)
        assert (line["event"], line["url"], line["operators"]) == ("listening", URL, OPERATORS)

    @pytest.mark.parametrize(
        "failure",
        [
            DataFolderLocked("data folder .baton is in use by process 7"),
            PortTaken("127.0.0.1:8000 is taken by process 7"),
            SchemaMismatch("not yet applied: 0001; run `baton migrate`"),
            QueueMismatch("tasks.high has other arguments"),
            HandlersError(("nope: cannot be imported",)),
            PermissionError(13, "Permission denied"),
        ],
    )
    def test_what_keeps_it_from_starting_is_one_message(self, failure: Exception) -> None:
        grouped = ExceptionGroup("roles", [ExceptionGroup("others", [failure]), failure])
        for each in (failure, grouped):
            result = baton("run", serve=Service(url=None, failure=each))
            assert result.exit_code == 1
            assert result.stderr == f"Error: {failure}\n"

    def test_its_traceback_is_in_the_log_for_who_asks(self) -> None:
        service = Service(url=None, failure=SchemaMismatch("old"))
        result = baton("run", serve=service, LOG_LEVEL="debug", LOG_FORMAT="json")
        assert "Traceback" in json.loads(result.stderr.splitlines()[0])["exception"]

    def test_a_bug_keeps_its_traceback(self) -> None:
        result = baton("run", serve=Service(failure=ExceptionGroup("roles", [KeyError("x"), OSError("y")])))
        assert isinstance(result.exception, ExceptionGroup)
        assert isinstance(result.exception.exceptions[0], KeyError)

    def test_settings_that_cannot_be_used_are_all_told(self) -> None:
        service = Service()
        result = baton("run", serve=service, PORT="x", MAX_RETRIES="-1")
        assert result.exit_code == 2
        assert [line.split("=")[0] for line in result.stderr.splitlines()[1:]] == ["  MAX_RETRIES", "  PORT"]
        assert service.settings is None


class TestDotenv:
    @pytest.fixture(autouse=True)
    def dotenv(self, folder: Path) -> None:
        (folder / ".env").write_text(
            "POSTGRES_HOST=postgres\nMAX_RETRIES=9\nHOST=0.0.0.0\nALLOW_ANONYMOUS=1\n"
        )

    def test_is_read(self) -> None:
        service = Service()
        result = baton("run", serve=service)
        assert settings_of(service).postgres_host == "postgres"
        assert "ignored" not in result.stderr

    def check_ignored(self, result: Result, service: Service, folder: Path) -> None:
        assert result.exit_code == 0, result.output
        assert settings_of(service).embedded
        assert settings_of(service).max_retries == 3
        [line] = result.stderr.splitlines()
        assert line.startswith(f"{folder / '.env'} is ignored")

    def test_is_ignored_and_this_is_said_with_the_option(self, folder: Path) -> None:
        service = Service()
        self.check_ignored(baton("run", "--embedded", serve=service), service, folder)

    def test_so_it_is_with_the_environment(self, folder: Path) -> None:
        service = Service()
        self.check_ignored(baton("run", serve=service, EMBEDDED="true"), service, folder)

    def test_so_it_is_with_settings_toml(self, folder: Path) -> None:
        (folder / "settings.toml").write_text("EMBEDDED = true\n")
        service = Service()
        self.check_ignored(baton("run", serve=service), service, folder)

    def test_even_one_that_is_broken(self, folder: Path) -> None:
        (folder / ".env").write_text("NO_SUCH_NAME=1\n!\n")
        service = Service()
        self.check_ignored(baton("run", "--embedded", serve=service), service, folder)

    def test_is_not_ignored_where_it_asks_for_the_embedded_default_itself(self, folder: Path) -> None:
        (folder / ".env").write_text("EMBEDDED=true\nMAX_RETRIES=9\n")
        service = Service()
        result = baton("run", serve=service)
        assert settings_of(service).max_retries == 9
        assert "ignored" not in result.stderr

    def test_may_complete_what_the_environment_leaves_open(self) -> None:
        service = Service()
        result = baton("run", serve=service, HOST="0.0.0.0")
        assert result.exit_code == 0, result.output
        assert settings_of(service).host == "0.0.0.0"

    def test_does_not_hide_what_is_wrong_with_the_environment(self) -> None:
        assert baton("run", "--embedded", serve=Service(), PORT="x").exit_code == 2


class TestSettings:
    def items(self, *arguments: str, **environ: str) -> dict[str, dict[str, Any]]:
        result = baton("settings", "--json", *arguments, **environ)
        assert result.exit_code == 0, result.output
        return {item["name"]: item for item in json.loads(result.stdout)["items"]}

    def test_shows_value_source_and_meaning_of_all(self, folder: Path) -> None:
        (folder / "settings.toml").write_text("MAX_RETRIES = 9\n")
        items = self.items(PORT="9000")
        assert items.keys() == NO_SETTINGS.keys()
        assert items["PORT"]["value"] == "9000"
        assert items["PORT"]["source"] == "environment"
        assert items["MAX_RETRIES"]["source"] == "settings.toml"
        assert items["HOST"]["source"] == "default"
        assert all(item["meaning"] for item in items.values())

    def test_knows_the_embedded_default(self) -> None:
        assert self.items("--embedded")["EMBEDDED"]["value"] == "true"

    @pytest.mark.parametrize("option", [(), ("--json",)])
    def test_shows_no_secret(self, option: tuple[str, ...]) -> None:
        environ = {"POSTGRES_PASSWORD": "sesame", "RABBITMQ_URL": "amqp://u:sesame@h/"}
        result = baton("settings", *option, **environ)
        assert result.exit_code == 0
        assert "POSTGRES_PASSWORD" in result.stdout
        assert "sesame" not in result.output

    def test_tells_what_is_wrong(self) -> None:
        result = baton("settings", PORT="x")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "PORT='x'" in result.stderr


class TestMigrate:
    @pytest.mark.parametrize("option", [(), ("--check",)])
    def test_a_database_out_of_reach_is_one_message(self, option: tuple[str, ...], folder: Path) -> None:
        result = baton("migrate", *option, POSTGRES_HOST=str(folder))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {folder}:5432/baton: cannot connect to PostgreSQL")
        assert result.stderr.count("\n") == 1

    def test_the_embedded_database_is_not_there(self) -> None:
        result = baton("migrate", EMBEDDED="true")
        assert result.exit_code == 2
        assert "baton run" in result.stderr


def test_a_start_waits_for_no_tracebacks_in_colour() -> None:
    script = (
        "import sys\n"
        "from pipeline.cli.run import _hidden\n"
        "with _hidden('rich'):\n"
        "    import pipeline.logs\n"
        "assert 'rich' not in sys.modules\n"
        "import rich.console\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
