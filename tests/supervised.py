"""`taskbeam up` as a test has it: real processes in a folder of their own, all of them ended with the test.

The fixtures `place` and `up` are known to every test through conftest.py.
"""

import asyncio
import contextlib
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.deployment import COMMAND, clean_env

READY_SECONDS_MAX = 30.0


def descendants(pid: int) -> list[int]:
    """Every process below `pid` now."""
    found = []
    with contextlib.suppress(OSError):  # it may end meanwhile
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


def of_folder(folder: Path) -> list[str]:
    """Every process whose command line names the folder: also one that is nobody's child any more."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(f"{entry.name}: {line}")
    return found


class Up:
    """One `taskbeam up`; `begin()`, then `await ready()`."""

    def __init__(self, data: Path, logs: Path, **env: str) -> None:
        self.data = data
        self.env = {**clean_env(), "GENERATOR_SECONDS": "1", **env}
        self.log = logs / f"up-{secrets.token_hex(3)}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def begin(self, *args: str) -> None:
        argv = [sys.executable, str(COMMAND), "up", "--port", "0", "--data", str(self.data), *args]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be inherited, and respected
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
        made.append(Up(place / folder, place, **env))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def wait_until(condition: Callable[[], bool], tell: Callable[[], str], seconds: float = 20) -> None:
    """Raises AssertionError with what `tell` says when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.02)


def wait_gone(pids: list[int], seconds: float) -> list[str]:
    """Those of `pids` that still run after `seconds`, as command lines."""
    deadline = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [command_line(pid) for pid in pids if running(pid)]


async def refused(one: Up, *args: str) -> str:
    """What it says when it does not start; it must be quick, one line, and a failure."""
    one.begin(*args)
    assert one.process is not None
    assert one.process.wait(15) != 0
    output = one.output().strip()
    assert "Traceback" not in output
    assert len(output.splitlines()) == 1, output
    return output
