"""The compose file: valid by its specification, and of one mind with the code, the proxies and the Dockerfile."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from server.app import build
from server.cli import main
from server.settings import Settings
from tests.deploy.proxies import FILES

FILE = FILES / "compose.yaml"
VARIABLES = {field.metadata["env"] for field in Settings.__dataclass_fields__.values()}
SERVICES: dict[str, dict[str, Any]] = json.loads(json.dumps(YAML(typ="safe").load(FILE)))["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "taskbeam"}
WEBS = [service for name, service in OURS.items() if name.startswith("web-")]
INSIDE = {name for name, service in SERVICES.items() if service.get("network_mode") == "service:pod"}


def test_it_is_valid(tmp_path: Path) -> None:
    def check(path: Path) -> str:
        argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30).stdout

    assert "ok -- validation done" in check(FILE)
    (tmp_path / "compose.yaml").write_text(FILE.read_text().replace("network_mode:", "network_modes:"))
    assert "network_modes" in check(tmp_path / "compose.yaml")


def filled_in(environment: Mapping[str, str]) -> dict[str, str]:
    """With the values that .env would have; a secret stands nowhere else."""
    values = {"GENERATOR_URL": "https://images.example.com/v1/generate", "PUBLIC_URL": "https://tasks.example.com"}

    def value(match: re.Match[str]) -> str:
        return "" if match[2] == ":-" else values.get(match[1], "f" * 32)

    return {name: re.sub(r"\$\{(\w+)(:[?-])?[^}]*\}", value, text) for name, text in environment.items()}


@pytest.mark.pure
def test_our_processes_start_with_what_it_gives_them() -> None:
    assert len(WEBS) > 1
    for service in OURS.values():
        binary, *arguments = service["command"]
        assert binary == "sleep" or (binary == "taskbeam" and arguments[0] in main.commands)
        assert set(service.get("environment", {})) <= VARIABLES
    for service in WEBS:
        build(Settings.from_env(filled_in(service["environment"])))
    settings = Settings.from_env(filled_in(OURS["dispatcher"]["environment"]))
    assert settings.qstash_url == f"http://127.0.0.1:{settings.dispatcher_port}"
    assert settings.port == settings.dispatcher_port, "which the health check asks at"


@pytest.mark.pure
def test_secrets_come_from_outside_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, text in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|KEY|DATABASE_URL|HEADERS", variable):
                assert "${" in text, (name, variable)


@pytest.mark.pure
def test_nothing_but_the_proxy_is_reached_from_outside() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"pod"}
    assert sorted(INSIDE) == ["dispatcher", "proxy", "web-8001", "web-8002"]
    ports = [service["environment"]["PORT"] for service in WEBS]
    to = re.findall(r"^\tto (.*)", (FILES / "Caddyfile").read_text(), re.MULTILINE)[0]
    assert to.split() == [f"127.0.0.1:{port}" for port in ports]
    for service in OURS.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["stop_grace_period"] == "15s"


@pytest.mark.pure
def test_order_and_versions() -> None:
    for name in INSIDE - {"proxy"}:
        assert SERVICES[name]["depends_on"]["login"] == {"condition": "service_completed_successfully"}
    assert SERVICES["login"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for service in SERVICES.values():
        assert service["image"] == "taskbeam" or re.search(r":\d", service["image"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or source == "./users" or (FILES / source).exists()
