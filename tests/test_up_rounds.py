"""`kill -9` of `up`, round after round, with tasks under way: none that was accepted is lost, nothing stays behind.

Three rounds; by hand more of them, and the figures (-s):

    TASKBEAM_TEST_ROUNDS=10 ./run test tests/test_up_rounds.py -s
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.supervised import Up, descendants, of_folder, wait_gone

ROUNDS = int(os.environ.get("TASKBEAM_TEST_ROUNDS", "3"))
SEED = 20261124
TASKS_A_ROUND = 6
GONE_SECONDS_MAX = 2.0


async def create(client: httpx.AsyncClient, accepted: set[str], count: int) -> None:
    """Ask for tasks, one after the other, until the server is no more."""
    for number in range(count):
        with contextlib.suppress(httpx.HTTPError):
            answer = await client.post("/api/generate", json={"prompt": f"picture {number}"})
            if answer.status_code == 202:
                accepted.add(answer.json()["taskId"])
        await asyncio.sleep(0.02)


def kill(one: Up, below: list[int], chance: random.Random) -> str:
    what = chance.choice(["supervisor", "group", "all"])
    if what == "group":
        os.killpg(one.pid, signal.SIGKILL)
    elif what == "all":
        for pid in chance.sample([one.pid, *below], len(below) + 1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    one.end(signal.SIGKILL)
    return what


async def statuses(client: httpx.AsyncClient, accepted: set[str]) -> dict[str, str]:
    found = {}
    for task_id in accepted:
        answer = await client.get(f"/api/generate/status?taskId={task_id}")
        found[task_id] = answer.json()["status"] if answer.status_code == 200 else f"HTTP {answer.status_code}"
    return found


async def test_rounds_of_kill(up: Callable[..., Up], place: Path) -> None:
    chance = random.Random(SEED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    accepted: set[str] = set()
    one = up(GENERATOR_SECONDS="0.5")
    for number in range(ROUNDS):
        began = time.monotonic()
        await one.started("--port", str(port))
        ready_ms = (time.monotonic() - began) * 1000
        async with one.client() as client:
            assert not [s for s in (await statuses(client, accepted)).values() if s in ("failed", "HTTP 404")]
            creating = asyncio.create_task(create(client, accepted, TASKS_A_ROUND))
            await asyncio.sleep(chance.uniform(0.05, 1.0))
            below = descendants(one.pid)
            what = kill(one, below, chance)
            killed = time.monotonic()
            assert wait_gone(below, GONE_SECONDS_MAX) == []
            while left := of_folder(place / "data"):
                assert time.monotonic() - killed < GONE_SECONDS_MAX, left
                await asyncio.sleep(0.01)
            gone_ms = (time.monotonic() - killed) * 1000
            await creating
        figures = f"ready {ready_ms:.0f} ms, {what} killed, gone {gone_ms:.0f} ms, {len(accepted)} tasks"
        print(f"round {number + 1}: {figures}")  # noqa: T201
    await one.started("--port", str(port))
    async with one.client() as client:
        deadline = time.monotonic() + 60
        while set((found := await statuses(client, accepted)).values()) != {"completed"}:
            assert "failed" not in found.values(), found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.1)
        for task_id in accepted:
            task = (await client.get(f"/api/generate/status?taskId={task_id}")).json()
            assert (await client.get(task["result"])).headers["content-type"] == "image/png"
        listed = (await client.get("/api/generate?limit=100")).json()["tasks"]
        assert accepted <= {task["taskId"] for task in listed}
    assert len(accepted) >= ROUNDS
    assert "lease_expired" not in one.output(), "what was held at the kill is handed back at the start"
    assert one.end() == 0
