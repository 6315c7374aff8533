"""Polling: the loop of the app that is replaced works unchanged, and a long poll hears at once."""

import asyncio
import time

import pytest

from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.playing import Play


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    return await deploy(dispatchers=0, generator=False)


@pytest.fixture
async def play(here: Deployment) -> Play:
    return await Play.of(here)


async def test_the_loop_of_the_replaced_app(deploy: Deploy) -> None:
    """Twenty times: `apiClient.get('/generate/status?taskId=' + id)`, then `data.status`, `data.result`."""
    here = await deploy()
    play = await Play.of(here)
    task_id = await play.create()
    async with here.client() as api:
        for _ in range(20):
            data = (await api.get(f"/api/generate/status?taskId={task_id}")).json()
            if data["status"] == "completed":
                break
            assert data["status"] in ("pending", "processing")
            assert data["result"] is None
            assert data["error"] is None
            await asyncio.sleep(1)
    assert data["status"] == "completed"
    assert data["result"].startswith("/results/")


async def test_when_to_ask_again(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    async with here.client() as client:
        answer = await client.get("/api/generate/status", params={"taskId": task_id})
        assert 500 <= answer.json()["pollAfterMs"] <= 10_000
        assert int(answer.headers["retry-after"]) >= 1
        await play.finish(task_id)
        answer = await client.get("/api/generate/status", params={"taskId": task_id})
        assert answer.json()["pollAfterMs"] is None
        assert "retry-after" not in answer.headers


async def test_etag(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    url = f"/api/generate/status?taskId={task_id}"
    async with here.client() as client:
        etag = (await client.get(url)).headers["etag"]
        for sent in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
            answer = await client.get(url, headers={"If-None-Match": sent})
            assert (answer.status_code, answer.content) == (304, b""), sent
        await play.report(task_id, 10)
        answer = await client.get(url, headers={"If-None-Match": etag})
        assert answer.status_code == 200
        assert answer.headers["etag"] != etag


async def test_a_long_poll_hears_at_once(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    async with here.client() as client:
        asked = asyncio.create_task(client.get(f"/api/generate/status?taskId={task_id}&wait=20&after=1"))
        await asyncio.sleep(0.3)
        assert not asked.done()
        reported = time.monotonic()
        await play.report(task_id, 10)
        answer = await asked
        assert time.monotonic() - reported < 0.5
        assert answer.json()["version"] == 2
        # Behind already: answered without waiting.
        answer = await client.get(f"/api/generate/status?taskId={task_id}&wait=20&after=1")
        assert answer.json()["version"] == 2
        # Nothing comes: the present, when the time is over.
        began = time.monotonic()
        answer = await client.get(f"/api/generate/status?taskId={task_id}&wait=1&after=2")
        assert time.monotonic() - began >= 1
        assert (answer.status_code, answer.json()["version"]) == (200, 2)
        # Ended: nothing can come.
        await play.finish(task_id)
        began = time.monotonic()
        answer = await client.get(f"/api/generate/status?taskId={task_id}&wait=20&after=3")
        assert time.monotonic() - began < 5
        assert answer.json()["status"] == "completed"


async def test_a_long_poll_through_a_restart_is_answered(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    async with here.client() as client:
        asked = asyncio.create_task(client.get(f"/api/generate/status?taskId={task_id}&wait=30&after=1"))
        await asyncio.sleep(0.3)
        here.web.stop()
        answer = await asked
        assert (answer.status_code, answer.json()["version"]) == (200, 1)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "invalid_parameter"),
        ("?taskId=nope-nope", 404, "task_not_found"),
        ("?taskId=%00", 404, "task_not_found"),
        ("?taskId=a%20b", 404, "task_not_found"),
        ("?taskId={id}&wait=soon", 400, "invalid_parameter"),
        ("?taskId={id}&wait=-1", 400, "invalid_parameter"),
        ("?taskId={id}&wait=1&after=x", 400, "invalid_cursor"),
    ],
)
async def test_refusals(here: Deployment, play: Play, query: str, status: int, code: str) -> None:
    task_id = await play.create()
    async with here.client() as client:
        answer = await client.get("/api/generate/status" + query.replace("{id}", task_id))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["code"] == code
    assert body["requestId"] == answer.headers["x-request-id"]
