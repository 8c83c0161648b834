"""compose.yaml, Containerfile and .env.example agree with the settings, the command line and each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from pipeline.broker.topology import WORK_QUEUES
from pipeline.cli import app
from pipeline.settings import Role, Settings, SettingsError, load
from pipeline.settings.fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = YAML(typ="safe").load(COMPOSE)["services"]
OURS = {name: service for name, service in SERVICES.items() if "ROLE" in service.get("environment", {})}
ENV_EXAMPLE = (ROOT / ".env.example").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where .env.example was only renamed."""
    (tmp_path / ".env").write_text(ENV_EXAMPLE)
    return tmp_path


def settings_of(service: Mapping[str, Any], folder: Path) -> Settings:
    return load(folder, service["environment"]).settings


@pytest.mark.parametrize("name", ["migrate", *OURS])
def test_a_service_names_only_known_settings(name: str) -> None:
    assert SERVICES[name]["environment"].keys() <= FIELDS.keys()


@pytest.mark.parametrize("name", ["migrate", *OURS])
def test_a_service_starts_with_env_example_renamed(name: str, folder: Path) -> None:
    settings = settings_of(SERVICES[name], folder)
    assert not settings.embedded
    assert settings.postgres_host in SERVICES
    assert re.search(r"@([a-z]+):", settings.rabbitmq_url).group(1) in SERVICES  # type: ignore[union-attr]


def test_each_role_is_in_one_service_and_each_queue_in_one_worker(folder: Path) -> None:
    all_settings = [settings_of(service, folder) for service in OURS.values()]
    workers = [settings for settings in all_settings if Role.WORKER in settings.role]
    assert all(settings.role == {Role.WORKER} for settings in workers)
    other_roles = [role for settings in all_settings if settings not in workers for role in settings.role]
    assert sorted(other_roles) == sorted(set(Role) - {Role.WORKER})
    queues = [queue for settings in workers for queue in settings.worker_queues]
    assert sorted(queues) == sorted(WORK_QUEUES.values())


def test_the_gateway_is_reached_from_outside_its_container_but_not_without_a_token(folder: Path) -> None:
    settings = settings_of(SERVICES["gateway"], folder)
    assert settings.host == "0.0.0.0"
    assert not settings.allow_anonymous
    assert SERVICES["gateway"]["ports"] == [f"127.0.0.1:8000:{settings.port}"]
    (folder / ".env").write_text(re.sub("^API_TOKENS=.*$", "", ENV_EXAMPLE, flags=re.MULTILINE))
    with pytest.raises(SettingsError, match="API_TOKENS"):
        settings_of(SERVICES["gateway"], folder)


def test_ports_are_published_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("document", ["compose.yaml", "README.md", "documents/operations/deploy.md"])
def test_what_is_to_be_scaled_can_be(document: str) -> None:
    scaled = re.findall(r"--scale (\w+)=", (ROOT / document).read_text())
    assert {"worker_high", "worker"} <= set(scaled)
    for name in scaled:
        assert not {"container_name", "hostname", "ports"} & SERVICES[name].keys()


@pytest.mark.parametrize("service", OURS.values(), ids=OURS)
def test_a_drain_is_not_cut_short(service: Mapping[str, Any], folder: Path) -> None:
    grace_seconds = int(service["stop_grace_period"].removesuffix("s"))
    assert grace_seconds >= settings_of(service, folder).drain_seconds + 15


def test_one_service_builds_the_image_that_all_share() -> None:
    built = [service for service in SERVICES.values() if "build" in service]
    assert [service["build"] for service in built] == [{"context": ".", "dockerfile": "Containerfile"}]
    assert {service["image"] for service in OURS.values()} == {built[0]["image"]}


def test_what_is_waited_for_can_tell_that_it_is_there() -> None:
    for service in SERVICES.values():
        for name, dependency in service.get("depends_on", {}).items():
            if dependency["condition"] == "service_healthy":
                assert SERVICES[name]["healthcheck"]["test"]
            else:
                assert dependency["condition"] == "service_completed_successfully"
                assert SERVICES[name]["restart"] == "no"


def test_compose_calls_commands_that_there_are() -> None:
    checks = [service["healthcheck"]["test"] for service in OURS.values()]
    called = {SERVICES["migrate"]["command"][0], *(check[2] for check in checks)}
    assert all(check[:2] == ["CMD", "baton"] for check in checks)
    assert called <= get_command(app).commands.keys()  # type: ignore[attr-defined]  # it is a group


def test_what_compose_asks_of_env_is_in_the_example() -> None:
    asked = re.findall(r"(?<!\$)\$\{([A-Z_]+)", COMPOSE.read_text())
    assert asked
    assert set(asked) <= set(re.findall(r"^([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE))


def test_the_image_is_built_with_the_uv_of_the_makefile() -> None:
    versions = [
        re.search(r"UV_VERSION *:?= *([\d.]+)", (ROOT / file).read_text())
        for file in ("Makefile", "Containerfile")
    ]
    assert len({found and found[1] for found in versions}) == 1
    assert all(versions)
