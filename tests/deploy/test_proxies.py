"""What a proxy with our configuration lets through, to whom, and how soon."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from server.dispatch.callback import CALLBACK_BYTES_MAX
from server.peer import FORWARDED_ADDRESSES
from server.push.poll import WAIT_SECONDS_MAX
from server.push.stream import HEARTBEAT_SECONDS
from server.serve import KEEP_ALIVE_SECONDS
from tests.deploy.proxies import FILES, NAME, ORIGIN, PASSWORD, USER, Proxy
from tests.deployment import Deployment
from tests.playing import Play
from tests.sse import stream


@pytest.fixture
async def play(here: Deployment) -> Play:
    return await Play.of(here)


@pytest.mark.pure
def test_what_the_server_takes_for_a_request_from_elsewhere_is_taken_out() -> None:
    nginx, caddy = (FILES / "nginx.conf").read_text().lower(), (FILES / "Caddyfile").read_text().lower()
    for name in (*FORWARDED_ADDRESSES, "x-forwarded-host"):
        assert f'proxy_set_header {name} "";' in nginx
        assert f"header_up -{name}\n" in caddy


@pytest.mark.pure
def test_time_outs_fit_those_of_the_server() -> None:
    text = (FILES / "nginx.conf").read_text()
    (read,), (idle,) = re.findall(r"proxy_read_timeout (\d+)s", text), re.findall(r"keepalive_timeout (\d+)s", text)
    assert int(read) > max(HEARTBEAT_SECONDS, WAIT_SECONDS_MAX) + 10
    assert int(idle) < KEEP_ALIVE_SECONDS
    assert f"keepalive {idle}s" in (FILES / "Caddyfile").read_text()


async def test_who_gets_through(here: Deployment, proxy: Proxy) -> None:
    proxy.start()
    own = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
    async with proxy.client() as client, proxy.client(password=None) as stranger:
        answer = await client.post("/api/generate", json={"prompt": "mine"}, headers=own)
        assert answer.status_code == 202
        assert answer.http_version == "HTTP/2"
        elsewhere = dict.fromkeys(("X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "Forwarded"), "203.0.113.9")
        elsewhere["X-Forwarded-Host"] = "evil.test"
        assert (await client.get("/api/generate", headers=elsewhere)).status_code == 200
        forged = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost", "X-Real-IP": "::1", "Forwarded": "x"}
        # Without the password nothing of it, whatever is said besides.
        for path in ("/", "/api/generate", "/api/generate/events", "/results/x.png", "/readyz", "/docs", "/static/x"):
            for headers in ({}, forged, {"Authorization": "Bearer x"}):
                assert (await stranger.get(path, headers=headers)).status_code == 401, (path, headers)
        async with proxy.client(password="wrong") as guesser:
            assert (await guesser.get("/")).status_code == 401
        for seen in (client, stranger):
            assert (await seen.get("/metrics")).status_code == 404
        # A browser adds the password to what other websites make it send: the server still refuses those.
        for headers in (
            {"Origin": "https://evil.test"},
            {"Origin": "null"},
            {"Origin": f"{ORIGIN}.evil.test"},
            {"Origin": ORIGIN.replace("https", "http")},
            {"Origin": ORIGIN.replace(".", "x")},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            answer = await client.post("/api/generate", json={"prompt": "theirs"}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin"), headers
        # Another name has no certificate here.
        async with proxy.client() as other:
            with pytest.raises(httpx.ConnectError):
                await other.get("https://evil.test/")
        answer = await client.get("/", headers={"Host": "evil.test"})
        assert answer.status_code == 421 or not answer.content
        # What proves itself comes through to everyone, and only that, whatever the path is made to look like.
        for path in ("callback", "progress"):
            answer = await stranger.post(f"/api/generate/{path}", json={})
            assert (answer.status_code, "code" in answer.json()) == (401, True), answer.text
        assert (await stranger.post("/api/generate/webhook/standard", json={})).json()["code"]
        for path in ("/api/generate/callback/..", "/api/generate/webhook/x/../..", "/api/generate/callback%2f.."):
            answer = await stranger.get(httpx.URL(ORIGIN).copy_with(raw_path=path.encode()))
            assert answer.status_code in (401, 403, 404, 405, 421), (path, answer.text)
            assert "tasks" not in answer.text
        tasks = (await client.get("/api/generate")).json()["tasks"]
    assert [task["prompt"] for task in tasks] == ["mine"]
    async with httpx.AsyncClient(base_url=proxy.inner_url, trust_env=False) as inside:
        assert (await inside.get("/api/generate")).status_code == 200
        # The door inside is the server's own: it judges as if there were no proxy.
        for headers in ({"Host": "evil.test"}, {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-Host": NAME}):
            answer = await inside.get("/api/generate", headers=headers)
            assert answer.json()["code"] == "foreign_host", headers
    for origin, password, status in ((ORIGIN, None, 401), ("https://evil.test", PASSWORD, 403)):
        with pytest.raises(InvalidStatus) as refused:
            async with _socket(proxy, origin, password):
                pass
        assert refused.value.response.status_code == status
    # Taken out of the configuration by mistake, the password leaves the door shut.
    proxy.stop()
    proxy.start(proxy.without_password)
    async with proxy.client(password=None) as stranger:
        for path in ("/", "/api/generate", "/api/generate/events"):
            assert (await stranger.get(path)).status_code == proxy.shut


async def test_what_comes_through_and_how_soon(here: Deployment, proxy: Proxy, play: Play) -> None:
    proxy.start()
    await _streams_come_at_once_and_many_over_one_connection(proxy, play)
    await _large_callbacks_come_through(proxy, play)
    await _files_are_cached_and_streams_are_not_compressed(proxy, here.folder)


async def _streams_come_at_once_and_many_over_one_connection(proxy: Proxy, play: Play) -> None:
    task_id = await play.create()
    streams = 20  # a browser has six connections to a host over HTTP/1.1
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(proxy.client(connections=1, headers={"Accept-Encoding": "gzip"}))
        beside = await stack.enter_async_context(proxy.client())
        opened = [await stack.enter_async_context(stream(client, f"taskId={task_id}")) for _ in range(streams)]
        late = [asyncio.create_task(_arrival(events)) for events in opened]
        socket = await stack.enter_async_context(_socket(proxy))
        await socket.send(json.dumps({"type": "subscribe", "taskIds": [task_id], "after": {task_id: 1}}))
        assert json.loads(await socket.recv())["type"] == "subscribed"
        poll = asyncio.create_task(beside.get(f"/api/generate/status?taskId={task_id}&wait=60&after=1"))
        await asyncio.sleep(0.5)  # all of them are waiting
        await play.report(task_id, 40)
        committed = time.monotonic()
        assert (await poll).json()["progress"] == 40
        assert json.loads(await socket.recv())["task"]["progress"] == 40
        arrived = await asyncio.gather(*late)
        assert max(arrived) - committed < 1
        await play.finish(task_id)
        for events in opened:
            assert [event.data["status"] async for event in events][-1] == "completed"


async def _arrival(events: AsyncIterator[Any]) -> float:
    async for event in events:
        if event.is_change and event.data["progress"] == 40:
            return time.monotonic()
    raise AssertionError("the stream ended before")


def _socket(proxy: Proxy, origin: str = ORIGIN, password: str | None = PASSWORD) -> connect:
    headers = {}
    if password is not None:
        request = next(httpx.BasicAuth(USER, password).auth_flow(httpx.Request("GET", ORIGIN)))
        headers = {"Authorization": request.headers["Authorization"]}
    return connect(
        f"wss://{NAME}/api/generate/ws",
        host="127.0.0.1",
        port=proxy.port,
        ssl=proxy.tls(),
        proxy=None,
        origin=origin,  # type: ignore[arg-type]  # a NewType of str
        additional_headers=headers,
    )


async def _large_callbacks_come_through(proxy: Proxy, play: Play) -> None:
    task_id = await play.create()
    json_type = {"Content-Type": "application/json"}
    # Of a request that is refused before it is sent whole, HTTP/1.1 clients see the answer.
    async with proxy.client(http2=False) as client, proxy.client(http2=False, password=None) as stranger:
        answer = await client.post("/api/generate", content=b" " * 65_537, headers=json_type)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        for size, status in ((CALLBACK_BYTES_MAX + 1, 413), (CALLBACK_BYTES_MAX, 200)):
            path, body, headers = play.callback(task_id, size=size)
            assert (await stranger.post(path, content=body, headers=headers)).status_code == status


async def _files_are_cached_and_streams_are_not_compressed(proxy: Proxy, folder: Path) -> None:
    picture = b"\x89PNG" + bytes(100_000)
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "a-picture-of-the-tests-0001.png").write_bytes(picture)
    async with proxy.client() as client:
        answer = await client.get("/results/a-picture-of-the-tests-0001.png")
        assert answer.content == picture
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        answer = await client.get("/static/client.js", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["cache-control"] == "no-cache"
        unchanged = await client.get("/static/client.js", headers={"If-None-Match": answer.headers["etag"]})
        assert unchanged.status_code == 304
        async with client.stream("GET", "/api/generate/events", headers={"Accept-Encoding": "gzip"}) as events:
            assert "content-encoding" not in events.headers
