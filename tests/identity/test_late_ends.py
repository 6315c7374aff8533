"""A right that ends while its client is slow, or while its request waits, ends all the same."""

import asyncio
import json
import socket
import time

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from server.push.socket import END_SECONDS_MAX
from tests.conftest import Connection
from tests.deployment import Deployment
from tests.exposition import scrape, value
from tests.identity.conftest import DeploySignedIn
from tests.identity.tokens import Person

# More than the buffers of the kernel hold.
TASKS = 180
LARGE = "x" * 31_000
LOOK_SECONDS = 1.0


@pytest.fixture
async def here(deploy_signed_in: DeploySignedIn) -> Deployment:
    return await deploy_signed_in(dispatchers=0, generator=False)


async def create(client: httpx.AsyncClient, person: Person, prompt: str) -> str:
    answer = await client.post("/api/generate", json={"prompt": prompt}, headers=person.headers())
    return str(answer.json()["taskId"])


def narrow(port: int) -> socket.socket:
    """A client's socket that holds little."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    return made


async def drip(reading: socket.socket, until: float) -> None:
    """Take little and often, so that each frame gets through in its time."""
    loop = asyncio.get_running_loop()
    while time.time() < until and await loop.sock_recv(reading, 16_384):  # noqa: ASYNC110  (the network tells nobody)
        await asyncio.sleep(0.1)


async def test_who_reads_slowly_is_told_nothing_after_the_end(here: Deployment) -> None:
    person = Person()
    async with here.client() as client:
        await asyncio.gather(*(create(client, person, f"{n} {LARGE}") for n in range(TASKS)))
        expires_at = int(time.time()) + 4
        headers = person.headers(exp=expires_at)
        reading = narrow(here.web.port)
        # HTTP/1.0: the way out through the server.
        head = {"Host": "localhost", "Last-Event-ID": "s1", **headers}
        lines = ["GET /api/generate/events HTTP/1.0", *(f"{name}: {text}" for name, text in head.items()), "", ""]
        await asyncio.get_running_loop().sock_sendall(reading, "\r\n".join(lines).encode())
        url = f"ws://127.0.0.1:{here.web.port}/api/generate/ws"
        holding = narrow(here.web.port)
        async with connect(
            url, sock=holding, additional_headers=headers, proxy=None, max_queue=1, max_size=2**24, close_timeout=1
        ) as slow:
            await slow.send('{"type":"subscribe","all":true,"after":"s1"}')
            await drip(reading, expires_at + LOOK_SECONDS + END_SECONDS_MAX + 2)
            # What it asks for after the end is not done either.
            late = await create(client, person, "made after the end")
            try:
                await slow.send(json.dumps({"type": "subscribe", "taskIds": [late]}))
                told = [json.loads(message) async for message in slow]
            except ConnectionClosed:
                told = []
            shown = await scrape(here.web.url)
        reading.close()
    assert late not in [message.get("task", {}).get("taskId") for message in told]
    for transport in ("sse", "websocket"):
        assert value(shown, "taskbeam_streams_open", {"transport": transport}) == 0, transport
    assert value(shown, "taskbeam_access_ended_total", {"reason": "expired"}) == 2


async def test_a_join_that_waits_beyond_the_end_is_refused(here: Deployment, owner: Connection) -> None:
    person = Person()
    async with here.client() as client:
        task = await create(client, person, "a fox")
        headers = person.headers(exp=int(time.time()) + 2)
        async with owner.transaction():
            await owner.execute("lock table public.image_generations in access exclusive mode")
            asked = [
                asyncio.create_task(client.get(f"/api/generate/{route}", headers=headers))
                for route in (f"status?taskId={task}&wait=10", f"events?taskId={task}", "events")
            ]
            await asyncio.sleep(2.2)
        answers = await asyncio.gather(*asked)
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(401, "access_token_expired")] * 3
