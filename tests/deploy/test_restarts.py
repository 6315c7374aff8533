"""A web process behind a proxy dies or is restarted: its streams go on at the other one, and nothing is lost."""

import asyncio
import signal

import httpx

from tests.deploy.proxies import PASSWORD, Proxy
from tests.deployment import Deployment, Server, listen
from tests.playing import Play
from tests.sse import Event, check_followed, stream

STREAMS = 10


class Follower:
    """A browser: comes back with its cursor after each end that is not the task's."""

    def __init__(self, proxy: Proxy, task_id: str) -> None:
        self._proxy = proxy
        self._task_id = task_id
        self.seen: list[Event] = []
        self.told: list[Event] = []
        self.joined = 0
        self.news = asyncio.Event()

    async def run(self) -> None:
        async with self._proxy.client() as client:
            while not self.seen or self.seen[-1].data["status"] != "completed":
                headers = {"Last-Event-ID": self.seen[-1].id or ""} if self.seen else {}
                try:
                    async with stream(client, f"taskId={self._task_id}", headers) as events:
                        self.joined += 1
                        async for event in events:
                            self.told.append(event)
                            if event.is_change:
                                self.seen.append(event)
                            self.news.set()
                except (httpx.RemoteProtocolError, httpx.ReadError):
                    continue


async def have(followers: list[Follower], *, joined: int, version: int) -> None:
    """Wait until all have come that often and have seen that version."""
    async with asyncio.timeout(10):
        for follower in followers:
            while follower.joined < joined or not follower.seen or follower.seen[-1].data["version"] < version:
                await follower.news.wait()
                follower.news.clear()


def let_go(server: Server) -> None:
    """From now on its port is closed when it ends, as in life: the test would keep it open."""
    server.listener.close()


async def test_streams_go_on_at_the_other_process(here: Deployment, proxy: Proxy) -> None:
    """And while there is none, a stream is told to come again, and nothing of a token is written down."""
    proxy.start()
    one, two = here.webs
    let_go(one)
    let_go(two)
    play = await Play.of(here)
    task_id = await play.create()
    followers = [Follower(proxy, task_id) for _ in range(STREAMS)]
    running = asyncio.gather(*(follower.run() for follower in followers))
    await have(followers, joined=1, version=1)

    one.kill()
    await play.report(task_id, 10, web=1)
    await have(followers, joined=1, version=2)
    moved = [follower for follower in followers if follower.joined == 2]
    assert 0 < len(moved) < STREAMS  # the connections were shared out
    assert not any(event.event == "bye" for follower in followers for event in follower.told)

    await asyncio.sleep(1.5)  # Caddy looks once a second
    async with proxy.client() as browser:
        for _ in range(4):  # whoever's turn it would be
            assert (await browser.post("/api/generate", json={"prompt": "another"})).status_code == 202
    one.listener = listen(port=one.port)
    await one.start()
    let_go(one)
    two.signal(signal.SIGTERM)
    await play.report(task_id, 20)
    await have(followers, joined=2, version=3)
    assert two.wait(5) in (0, -signal.SIGTERM)
    for follower in followers:
        said = [event.event for event in follower.told]
        assert "bye" in said
        assert follower.told[said.index("bye") - 1].retry  # when to come back

    assert (await play.finish(task_id)).json()["outcome"] == "applied"
    await asyncio.wait_for(running, 10)
    for follower in followers:
        check_followed(follower.seen)
        assert [event.data["version"] for event in follower.seen] == [1, 2, 3, 4]

    one.kill()
    path = "/api/generate/webhook/standard?task=x&attempt=1&token=TOKEN-IN-QUERY"
    secret = {"Authorization": "Bearer TOKEN-IN-HEADER", "Upstash-Signature": "TOKEN-IN-SIGNATURE"}
    async with (
        proxy.client() as outside,
        httpx.AsyncClient(base_url=proxy.inner_url, trust_env=False) as inside,
    ):
        answers = asyncio.gather(*(client.post(path, headers=secret) for client in (outside, inside)))
        retries = await asyncio.gather(come_again(outside), come_again(inside))
        # Any answer but a stream would end an EventSource for ever.
        assert all(retry_ms in range(1_000, 5_000) for retry_ms in retries)
        assert all(answer.status_code in (502, 503) for answer in await answers)
    log = proxy.log.read_text()
    assert "/api/generate/webhook/standard" in log
    assert "TOKEN-IN" not in log
    assert PASSWORD not in log


async def come_again(client: httpx.AsyncClient) -> int | None:
    """In how many ms it is told to, by a stream that ends at once."""
    async with stream(client, "taskId=x") as events:
        (only,) = [event async for event in events]
        return only.retry
