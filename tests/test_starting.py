"""How `web` and `dispatcher` begin by themselves, as a platform runs them: what they wait for, and what they say."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.settings import Settings
from tests.deployment import COMMAND, CURRENT_KEY, TOKEN, Database, clean_env


def begin(name: str, log: Path, database_url: str, **env: str) -> "subprocess.Popen[bytes]":
    needed = {
        "DATABASE_URL": database_url,
        "GENERATOR_URL": "http://127.0.0.1:9/",
        "QSTASH_URL": "http://127.0.0.1:9",
        "QSTASH_TOKEN": TOKEN,
        "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
        "PORT": "0",
        "DISPATCHER_PORT": "0",
        "DATA_DIR": str(log.parent),
    }
    with log.open("wb") as output:
        argv = [sys.executable, str(COMMAND), name]
        return subprocess.Popen(argv, env={**clean_env(), **needed, **env}, stdout=output, stderr=output)


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["web", "dispatcher"])
def test_a_signal_ends_the_wait_for_postgres_at_once(name: str, tmp_path: Path) -> None:
    process = begin(name, tmp_path / "log", "postgres://app:secretpw@127.0.0.1:9/app")
    wait_for(tmp_path / "log", "waiting_for_postgres")
    time.sleep(0.6)  # several tries
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(5)
    assert time.monotonic() - began < 1
    said = (tmp_path / "log").read_text()
    assert said.count("waiting_for_postgres") == 1
    assert "Postgres at 127.0.0.1:9 cannot be reached" in said
    assert "secretpw" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["web", "dispatcher"])
async def test_a_database_without_our_tables_is_named_as_such(
    name: str, tmp_path: Path, empty_database: Database
) -> None:
    process = begin(name, tmp_path / "log", empty_database.owner_url)
    wait_for(tmp_path / "log", "run `taskbeam migrate`")
    process.terminate()
    process.wait(5)


async def test_what_no_waiting_mends_is_said_at_once_in_one_line(tmp_path: Path, database: Database) -> None:
    process = begin("web", tmp_path / "log", database.url.replace(database.name, "no_such_database"))
    assert process.wait(10) == 1
    lines = (tmp_path / "log").read_text().strip().splitlines()
    assert lines == ['taskbeam: Postgres at a local socket says: database "no_such_database" does not exist']


async def test_a_port_that_is_taken_is_refused_in_one_line(tmp_path: Path, database: Database) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = begin("web", tmp_path / "log", database.url, PORT=port)
        assert process.wait(10) == 2
    lines = (tmp_path / "log").read_text().strip().splitlines()
    assert lines == [f"taskbeam: port {port} on 127.0.0.1 cannot be used: Address already in use"]


def test_every_setting_that_is_missing_is_named(tmp_path: Path) -> None:
    argv = [sys.executable, str(COMMAND), "web"]
    done = subprocess.run(argv, env=clean_env(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 2
    assert [line.split()[1] for line in done.stderr.splitlines()] == [
        "DATABASE_URL",
        "GENERATOR_URL",
        "QSTASH_TOKEN",
        "QSTASH_CURRENT_SIGNING_KEY",
    ]


def test_the_command_lists_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, str(COMMAND), "settings"], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    for field in Settings.__dataclass_fields__.values():
        assert field.metadata["env"] in done.stdout
