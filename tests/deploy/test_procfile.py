"""The Procfile, run by a runner of such files with the installed package, from the release to a finished picture."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from honcho.environ import parse_procfile

from server.embedded.redis import EmbeddedRedis
from tests.deploy.image import ROOT, Image
from tests.deploy.proxies import free_port
from tests.deployment import CURRENT_KEY, TOKEN, Database
from tests.sse import changes, check_followed
from tests.test_starting import wait_for

PROCESSES = ("web", "dispatcher", "generator")


@pytest.fixture
def env(image: Image, empty_database: Database, redis_server: EmbeddedRedis, tmp_path: Path) -> dict[str, str]:
    web, dispatcher, generator = free_port(), free_port(), free_port()
    return {
        **image.env,
        "DATA_DIR": str(tmp_path),
        "DATABASE_URL": empty_database.owner_url,
        "REDIS_URL": redis_server.url(),
        "REDIS_PREFIX": f"{empty_database.name}:",
        "PORT": str(web),
        "CALLBACK_URL": f"http://127.0.0.1:{web}",
        "DISPATCHER_PORT": str(dispatcher),
        "QSTASH_URL": f"http://127.0.0.1:{dispatcher}",
        "QSTASH_TOKEN": TOKEN,
        "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
        "GENERATOR_URL": f"http://127.0.0.1:{generator}/",
        "GENERATOR_SECONDS": "0.5",
    }


def test_release_then_processes_then_a_picture(env: dict[str, str], image: Image, tmp_path: Path) -> None:
    lines = parse_procfile((ROOT / "Procfile").read_text()).processes
    assert set(lines) == {"release", *PROCESSES}
    for said in ("applied 000_ground.sql", "nothing to do"):  # each release runs it again
        done = subprocess.run(
            ["/bin/sh", "-c", lines["release"]], env=env, cwd=image.home, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(said)

    log = tmp_path / "log"
    runner = [sys.executable, "-m", "honcho", "--procfile", str(ROOT / "Procfile"), "--app-root", str(image.home)]
    with log.open("wb") as output:
        running = subprocess.Popen(
            [*runner, "start", "--no-colour", "--port", env["PORT"], *PROCESSES],
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(log, '"web_started"')
        wait_for(log, '"dispatcher_started"')
        asyncio.run(_a_picture(env["CALLBACK_URL"]))
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        running.wait(10)
        assert time.monotonic() - began < 5
        said = log.read_text()
        assert ("web_stopped" in said, "dispatcher_stopped" in said) == (True, True), said
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


async def _a_picture(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as client:
        task_id = (await client.post("/api/generate", json={"prompt": "a mill by the river"})).json()["taskId"]
        seen = await changes(client, f"taskId={task_id}")
        check_followed(seen)
        assert seen[-1].data["status"] == "completed", json.dumps(seen[-1].data)
        assert (await client.get(seen[-1].data["result"])).headers["content-type"] == "image/png"
