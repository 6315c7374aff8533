"""Pid files that a killed Postgres left: whoever has such a number now is neither believed nor harmed."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from server.embedded import pid_file
from server.embedded.children import ChildFailed
from server.embedded.home import server_user
from server.embedded.postgres import EmbeddedPostgres
from tests.supervised import wait_gone

SLEEP = ["sleep", "600"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """The folder of a cluster that no server runs on."""
    folder = Path(tempfile.mkdtemp(prefix="taskbeam-pid-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder)
    server.prepare()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with it; it must live to the end."""
    process = subprocess.Popen(SLEEP, user=server_user())  # Postgres cares only for those it could signal
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


async def killed(folder: Path) -> None:
    """Leave what a kill -9 leaves."""
    server = EmbeddedPostgres(folder)
    server.start()
    await server.ready()
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    assert (folder / "postgres" / "postmaster.pid").exists()
    assert list((folder / "socket").glob(".s.PGSQL.*.lock"))


def put_pid(path: Path, pid: int) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([str(pid), *lines[1:]]) + "\n")


async def starts(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    server.start()
    try:
        await server.ready()
        connection = await asyncpg.connect(server.url("postgres"))
        assert await connection.fetchval("show fsync") == "on"
        await connection.close()
    finally:
        server.stop()


@pytest.mark.parametrize("where", ["postmaster.pid", "the socket's"])
async def test_a_number_that_is_somebody_else_s_now(
    cluster: Path, bystander: "subprocess.Popen[bytes]", where: str
) -> None:
    await killed(cluster)
    path = cluster / "postgres" / "postmaster.pid" if where == "postmaster.pid" else None
    put_pid(path or next((cluster / "socket").glob(".s.PGSQL.*.lock")), bystander.pid)
    await starts(cluster)


async def test_a_pid_file_that_is_empty(cluster: Path) -> None:
    await killed(cluster)
    (cluster / "postgres" / "postmaster.pid").write_text("")
    await starts(cluster)


async def test_a_server_that_still_runs_is_waited_for_and_not_killed(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pid_file, "ORPHAN_SECONDS_MAX", 0.3)
    first = EmbeddedPostgres(cluster)
    first.start()
    await first.ready()
    assert first.process is not None
    try:
        # By another way to the same folder, too.
        link = cluster / "link"
        link.symlink_to(cluster)
        for folder in (cluster, link):
            with pytest.raises(ChildFailed, match=f"another Postgres .process {first.process.pid}. is running"):
                EmbeddedPostgres(folder).start()
        assert first.process.poll() is None
    finally:
        first.stop()


async def test_a_process_of_the_dead_server_that_still_writes_is_seen(cluster: Path) -> None:
    """The number in the file is recycled, and one of its backends lives on: two must never write to one cluster."""
    first = EmbeddedPostgres(cluster)
    first.start()
    await first.ready()
    connection = await asyncpg.connect(first.url("postgres"))
    backend = await connection.fetchval("select pg_backend_pid()")
    os.kill(backend, signal.SIGSTOP)
    bystander = subprocess.Popen(SLEEP, user=server_user())  # noqa: ASYNC220
    second = EmbeddedPostgres(cluster)
    try:
        assert first.process is not None
        first.process.kill()
        first.process.wait()
        put_pid(cluster / "postgres" / "postmaster.pid", bystander.pid)
        second.start()
        with pytest.raises(ChildFailed, match="pre-existing shared memory block"):
            await second.ready()
        assert bystander.poll() is None
    finally:
        second.stop()
        os.kill(backend, signal.SIGKILL)
        os.kill(backend, signal.SIGCONT)
        bystander.kill()
        bystander.wait()
        connection.terminate()
    assert wait_gone([backend], 5) == []
    await starts(cluster)
