"""A full disk under `up`: a small one, really filled; where none can be mounted, files that may not grow."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.supervised import Up, refused

DISK_BYTES = 160_000_000


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """A file system of its own, of DISK_BYTES, in memory."""
    path = place / "disk"
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "taskbeam-test", str(path)]
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NOT TESTED with a disk that is full: nothing may be mounted here ({error})")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # noqa: S607


def fill(disk: Path) -> Path:
    """Leave nothing."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65_536)):
            pass
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass
    return ballast


async def test_full_at_the_first_start(up: Callable[..., Up], disk: Path) -> None:
    ballast = fill(disk)
    one = up("disk/data")
    said = await refused(one)
    assert "No space left on device" in said
    # Room for the folder, but not for the database.
    os.truncate(ballast, ballast.stat().st_size - 20_000_000)
    one.begin()
    assert one.process is not None
    assert await asyncio.to_thread(one.process.wait, 30) == 1
    assert "No space left on device" in one.output().splitlines()[-1]
    assert "Traceback" not in one.output()
    assert not [name for name in os.listdir(disk / "data") if name.startswith("postgres")]
    ballast.unlink()
    await one.started()
    assert one.end() == 0


async def test_full_while_it_runs(up: Callable[..., Up], disk: Path) -> None:
    one = await up("disk/data", GENERATOR_SECONDS="1").started()
    async with one.client() as client:
        accepted = [await create(client) for _ in range(4)]
        ballast = fill(disk)
        refusals = await ask_until_refused(client)
        assert {answer.status_code for answer in refusals} <= {202, 503}
        assert refusals[-1].status_code == 503
        assert refusals[-1].json()["code"] == "unavailable"
        accepted += [answer.json()["taskId"] for answer in refusals if answer.status_code == 202]
        await use_up_the_log(disk / "data")
        await asyncio.sleep(2)
        assert "left on the disk of" in one.output()
        assert "picture_not_stored" in one.output()
        assert "the private Postgres ended (exit code 1: could not write to file" in one.output()
        ballast.unlink()
        deadline = time.monotonic() + 40
        while set((found := await statuses(client, accepted)).values()) != {"completed"}:
            assert "failed" not in found.values(), found
            assert time.monotonic() < deadline, (found, one.output())
            await asyncio.sleep(0.1)
        assert '"status": 507' not in one.output(), "a picture that waits costs no delivery"
        assert "there is room again on the disk of" in one.output()
    assert "Traceback" not in one.output()
    assert one.end() == 0


async def use_up_the_log(data: Path) -> None:
    """Until Postgres cannot begin another file of its log: that ends every connection to it, or all of it."""
    connection = await asyncpg.connect(f"postgresql:///taskbeam?host={data}/socket&user=postgres")
    with contextlib.suppress(asyncpg.ConnectionDoesNotExistError):
        for _ in range(100):
            await connection.execute("select pg_switch_wal(), pg_logical_emit_message(false, 'test', 'x')")
    assert connection.is_closed()


async def create(client: httpx.AsyncClient) -> str:
    answer = await client.post("/api/generate", json={"prompt": "on a small disk"})
    assert answer.status_code == 202
    task_id: str = answer.json()["taskId"]
    return task_id


async def ask_until_refused(client: httpx.AsyncClient) -> list[httpx.Response]:
    """Ask for tasks until one is not accepted."""
    answers: list[httpx.Response] = []
    while not answers or answers[-1].status_code == 202:
        assert len(answers) < 400
        body = {"prompt": "x" * 32_000, "params": {"pad": "y" * 30_000}}
        answers.append(await client.post("/api/generate", json=body))
    return answers


async def statuses(client: httpx.AsyncClient, accepted: list[str]) -> dict[str, str]:
    found = {}
    for task_id in accepted:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = await client.get(f"/api/generate/status?taskId={task_id}")
            found[task_id] = answer.json().get("status", "?")
    return found
