"""How `up` ends: at any moment, by any signal, with nobody reading what it says; nothing of it is left."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.deployment import COMMAND, clean_env
from tests.sse import changes
from tests.supervised import READY_SECONDS_MAX, Up, descendants, of_folder, wait_gone

SEED = 20261124
MOMENTS = 4


def check_nothing_left(folder: Path, below: list[int], seconds: float = 2) -> None:
    assert wait_gone(below, seconds) == []
    deadline = time.monotonic() + seconds
    while left := of_folder(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    assert not (folder / "postgres" / "postmaster.pid").exists()


async def test_a_signal_at_any_moment_of_the_start_and_many_at_the_end(up: Callable[..., Up], place: Path) -> None:
    moments = random.Random(SEED)
    for number in range(MOMENTS):
        # The first ones also interrupt the making of the database.
        one = up("data")
        one.begin()
        await asyncio.sleep(moments.uniform(0.15, 2.0) if number else 0.9)
        below = descendants(one.pid)
        code = one.end(signal.SIGTERM)
        assert code in (0, -signal.SIGTERM), one.output()  # by the signal itself before there was anything to end
        assert "Traceback" not in one.output()
        assert wait_gone(below, 2) == []
        assert of_folder(place / "data") == []
    one = await up("data").started()
    below = descendants(one.pid)
    # Ctrl-C again and again, to the last moment.
    assert one.process is not None
    while one.process.poll() is None:
        one.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.003)
    assert one.process.returncode == 0
    assert "Traceback" not in one.output()
    check_nothing_left(place / "data", below, 0.5)


async def test_nobody_reads_what_it_says(place: Path) -> None:
    """Standard output is closed, and standard error a pipe without a reader."""
    data = place / "data"
    env = {**clean_env(), "GENERATOR_SECONDS": "0.5", "LOG_LEVEL": "debug"}
    argv = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, str(COMMAND), "up", "--port", "0"]
    reader, writer = os.pipe()
    argv += ["--data", str(data)]
    with subprocess.Popen(argv, env=env, stdout=writer, stderr=writer) as process:  # noqa: ASYNC220
        os.close(writer)
        os.close(reader)
        try:
            url = await web_url(data)
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
                task_id = (await client.post("/api/generate", json={"prompt": "a tree falls"})).json()["taskId"]
                assert (await changes(client, f"taskId={task_id}"))[-1].data["status"] == "completed"
            below = descendants(process.pid)
            assert len(below) >= 5
            # What it said went nowhere, and not into a file that took the closed one's place.
            assert (data / "lock").read_text() == str(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    check_nothing_left(data, below, 1)


async def web_url(data: Path) -> str:
    """Where it is ready, by what it keeps: there is nothing to read."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError, httpx.HTTPError):
                url: str = json.loads((data / "addresses.json").read_text())["web"]
                if (await client.get(f"{url}readyz")).status_code == 200:
                    return url
            await asyncio.sleep(0.05)
