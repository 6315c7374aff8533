"""What `up` does when one of its parts is killed, again and again too: it is started anew, and it is said."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.sse import changes, check_followed
from tests.supervised import Up, command_line, descendants


def pid_of(one: Up, words: str) -> int | None:
    return next((pid for pid in descendants(one.pid) if words in command_line(pid)), None)


async def until(one: Up, true: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, one.output()
        await asyncio.sleep(0.02)


async def ready_again(one: Up, client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert time.monotonic() < deadline, one.output()
        try:
            if (await client.get("/readyz")).json()["status"] == "ready":
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.05)


async def test_every_part_that_is_killed_is_started_again_and_told_in_a_line(
    up: Callable[..., Up], place: Path
) -> None:
    one = await up(GENERATOR_SECONDS="1.5").started()
    async with one.client() as client:
        task_id = (await client.post("/api/generate", json={"prompt": "through it all"})).json()["taskId"]
        for words, name in (
            ("taskbeam generator", "generator"),
            ("taskbeam dispatcher", "dispatcher"),
            ("taskbeam web", "web"),
            ("redis-server", "the private Redis"),
            ("bin/postgres -D", "the private Postgres"),
        ):
            killed = pid_of(one, words)
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await until(one, lambda words=words, killed=killed: pid_of(one, words) not in (None, killed))  # type: ignore[misc]
            lines = [line for line in one.output().splitlines() if line.startswith(f"taskbeam: {name} ended")]
            assert lines[0] == f"taskbeam: {name} ended (SIGKILL); again in 0.25 s"
        await ready_again(one, client)
        async with asyncio.timeout(30):
            assert (await changes(client, f"taskId={task_id}"))[-1].data["status"] == "completed"

        # Redis, while a stream is open: updates go on.
        task_id = (await client.post("/api/generate", json={"prompt": "a hint is lost"})).json()["taskId"]
        following = asyncio.create_task(changes(client, f"taskId={task_id}"))
        await asyncio.sleep(0.3)
        # It cannot come back: its folder is none any more.
        sockets = place / "data" / "socket-redis"
        sockets.rename(place / "away")
        sockets.write_text("")
        killed = pid_of(one, "redis-server")
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(20):
            seen = await following
        check_followed(seen)
        assert seen[-1].data["status"] == "completed"
        assert (await client.get("/readyz")).json()["redis"] == "down"
        # Each start that failed is told with its reason, and the pauses grow.
        failed = r"the private Redis could not be started \(.*File exists.*\); again in (\S+) s"
        await until(one, lambda: len(re.findall(failed, one.output())) > 1)
        assert re.findall(failed, one.output())[:2] == ["1", "2"]
        sockets.unlink()
        await until(one, lambda: pid_of(one, "redis-server"))
        await ready_again(one, client)
    assert one.end() == 0
