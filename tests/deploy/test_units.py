"""The systemd units of docs/deploy/, as systemd itself reads them and as our code means them."""

import dataclasses
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from server.cli import main
from server.dispatch.engine import CLOSE_SECONDS_MAX
from server.serve import GRACEFUL_SECONDS
from server.settings import Settings
from tests.deploy.proxies import FILES

SERVICES = ("taskbeam-web@.service", "taskbeam-dispatcher.service")
VARIABLES = {field.metadata["env"]: field for field in dataclasses.fields(Settings)}
ANALYZE = shutil.which("systemd-analyze")
EXPOSURE_MAX = "20"  # in tenths, of 0 (shut off from everything) to 10


def directives(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", (FILES / name).read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def env_file() -> dict[str, str]:
    lines = (FILES / "taskbeam.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.pure
@pytest.mark.parametrize("name", SERVICES)
def test_they_start_what_there_is_and_set_what_is_read(name: str) -> None:
    unit = directives(name)
    (command,) = unit["ExecStart"]
    binary, sub_command = shlex.split(command)
    assert (binary, sub_command in main.commands) == ("/opt/taskbeam/bin/taskbeam", True)
    for assignment in " ".join(unit.get("Environment", [])).split():
        variable = assignment.partition("=")[0]
        assert variable in VARIABLES
        assert not VARIABLES[variable].metadata["secret"], "any user may read it in a unit"
        assert variable not in env_file(), "the file would win"
    # It has ended by itself before systemd kills it.
    assert int(unit["TimeoutStopSec"][0]) > 2 * (GRACEFUL_SECONDS + CLOSE_SECONDS_MAX)


@pytest.mark.pure
def test_the_file_of_settings_is_whole_once_it_is_filled_in() -> None:
    env = env_file()
    assert set(env) <= set(VARIABLES)
    assert not any(value for name, value in env.items() if name.startswith("QSTASH_") and name != "QSTASH_URL")
    settings = Settings.from_env({name: value or "f" * 32 for name, value in env.items()})
    assert settings.callback_base == env["CALLBACK_URL"]


@pytest.mark.pure
def test_the_target_starts_the_processes_that_the_proxies_know() -> None:
    wanted = directives("taskbeam.target")["Wants"][0].split()
    ports = [port for unit in wanted for port in re.findall(r"taskbeam-web@(\d+)\.service", unit)]
    assert {re.sub(r"@\d+", "@", unit) for unit in wanted} == set(SERVICES)
    nginx, caddy = (FILES / "nginx.conf").read_text(), (FILES / "Caddyfile").read_text()
    assert re.findall(r"server 127\.0\.0\.1:(\d+)", nginx) == ports
    assert re.findall(r"127\.0\.0\.1:(\d+)", re.findall(r"^\tto (.*)", caddy, re.MULTILINE)[0]) == ports
    inner = f"http://127.0.0.1:{re.findall(r'listen 127.0.0.1:([0-9]+);', nginx)[0]}"
    assert inner == env_file()["CALLBACK_URL"]


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """As they are installed, but for the command, which has to be there for systemd."""
    if ANALYZE is None:
        pytest.skip("NOT TESTED with systemd: systemd-analyze is not on the path (apt-get install systemd)")
    copies = []
    for name in (*SERVICES, "taskbeam.target"):
        copies.append(tmp_path / name.replace("@.", "@8001."))
        copies[-1].write_text((FILES / name).read_text().replace("/opt/taskbeam/bin/taskbeam", "/bin/true"))
    return copies


def verified(units: list[Path]) -> str:
    """What systemd has to say against them."""
    argv = [ANALYZE or "", "verify", "--man=no", "--recursive-errors=no", *map(str, units)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    return done.stderr + ("" if done.returncode == 0 else f"exit status {done.returncode}")


def test_systemd_takes_them_whole(units: list[Path]) -> None:
    assert verified(units) == ""
    units[0].write_text(units[0].read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in verified(units)


def test_they_are_shut_off(units: list[Path]) -> None:
    for unit in units[:-1]:
        argv = [ANALYZE or "", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", str(unit)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stdout
        assert "Overall exposure level" in done.stdout
