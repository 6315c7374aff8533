"""Clients that do not read, send too slowly or too much, or go without a word: what they cost is bounded and ends."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.conftest import Connection, Deploy
from tests.deployment import Deployment
from tests.playing import Play

LISTENING, TIME_WAIT = "0A", "06"
Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    return await deploy(dispatchers=0, generator=False)


def resident_bytes(here: Deployment) -> int:
    assert here.web.process is not None
    status = Path(f"/proc/{here.web.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def open_connections(here: Deployment) -> int:
    """Those the kernel holds for the web process, whether it still counts them or not (proc(5), net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f":{here.web.port:04X}"
    return sum(row[1].endswith(port) and row[3] not in (LISTENING, TIME_WAIT) for row in rows)


async def open_streams(here: Deployment) -> dict[str, int]:
    async with here.client() as client:
        text = (await client.get("/metrics")).text
    return {
        kind: int(float(n)) for kind, n in re.findall(r'^taskbeam_streams_open{transport="(\w+)"} (\S+)$', text, re.M)
    }


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def request(here: Deployment, head: str) -> Connected:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.web.port, limit=2**16)
    writer.write(head.replace("HOST", f"127.0.0.1:{here.web.port}").encode())
    await writer.drain()
    return reader, writer


async def test_what_a_slow_reader_missed_is_conflated(here: Deployment, owner: Connection) -> None:
    """It is sent the newest progress and the end, not everything that was; and every event was made."""
    play = await Play.of(here)
    task_id = await play.create()
    reader, writer = await request(here, f"GET /api/generate/events?taskId={task_id} HTTP/1.1\r\nHost: HOST\r\n\r\n")
    await reader.readuntil(b"event: status")
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
    before = resident_bytes(here)
    preview = "data:image/png;base64," + "A" * 32_000
    for step in range(250):  # 8 MB: more than the buffers of a connection on loopback hold
        await play.report(task_id, step=step, steps=250, preview=preview)
    await play.finish(task_id)
    assert resident_bytes(here) - before < 20_000_000
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    data = b""
    while not data.endswith(b"\r\n0\r\n\r\n"):
        data += await asyncio.wait_for(reader.read(2**20), 10)
    writer.close()
    versions = [int(v) for v in re.findall(rb"^id: (\d+)", data, re.MULTILINE)]
    made = await owner.fetchval("select version from image_generations where task_id = $1", task_id)
    assert versions[-1] == made == 252
    assert versions == sorted(set(versions))
    assert len(versions) < 250, "nothing was conflated: the reader was not slow"
    assert data.count(b'"status":"completed"') == 1


async def test_a_flood_of_pings_that_nobody_reads_the_pongs_of(here: Deployment) -> None:
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    reader, writer = await request(here, f"GET /api/generate/ws HTTP/1.1\r\nHost: HOST\r\n{upgrade}\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    before = resident_bytes(here)
    ping = (bytes([0x89, 0x80 | 125]) + b"mask" + bytes(125)) * 1_000

    async def flood() -> None:
        for _ in range(500):
            writer.write(ping)
            await writer.drain()
            await asyncio.sleep(0)

    with pytest.raises(ConnectionError):  # it is cut off
        await asyncio.wait_for(flood(), 20)
    assert resident_bytes(here) - before < 50_000_000
    writer.close()


async def test_whoever_goes_is_forgotten(here: Deployment) -> None:
    play = await Play.of(here)
    task_id = await play.create()
    events = f"GET /api/generate/events?taskId={task_id} HTTP/1.1\r\nHost: HOST\r\n\r\n"
    poll = f"GET /api/generate/status?taskId={task_id}&wait=60&after=1 HTTP/1.1\r\nHost: HOST\r\n\r\n"
    opened = [await request(here, head) for head in (events, poll) for _ in range(25)]
    sockets = [await connect(here.web.url.replace("http", "ws") + "/api/generate/ws", proxy=None) for _ in range(5)]
    for socket in sockets:
        await socket.send(json.dumps({"type": "subscribe", "taskIds": [task_id]}))

    async def all_there() -> bool:
        return await open_streams(here) == {"sse": 25, "poll": 25, "websocket": 5}

    await until(all_there, "they are counted")
    for _, writer in opened:
        writer.transport.abort()
    for socket in sockets:
        socket.transport.abort()

    async def all_gone() -> bool:
        return set((await open_streams(here)).values()) == {0}

    await until(all_gone, "they are still counted")


async def test_what_a_stream_began_with_is_not_kept(here: Deployment) -> None:
    play = await Play.of(here)
    for _ in range(60):
        await play.create("x" * 30_000)  # 1.8 MB to begin with, for each stream of all tasks
    head = "GET /api/generate/events HTTP/1.1\r\nHost: HOST\r\n\r\n"
    opened: list[Connected] = []
    for number in range(80):
        reader, writer = await request(here, head)
        opened.append((reader, writer))
        for _ in range(60):
            await asyncio.wait_for(reader.readuntil(b"event: status"), 10)
        if number == 9:
            before = resident_bytes(here)
    assert resident_bytes(here) - before < 30_000_000  # all of it kept would be 126 MB
    for _, writer in opened:
        writer.transport.abort()


async def test_a_head_that_is_too_large(here: Deployment) -> None:
    for head in ("GET /healthz HTTP/1.1\r\nHost: HOST\r\nX: " + "y" * 100_000, "GET /" + "y" * 100_000):
        reader, writer = await request(here, head)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "head_too_large"
        writer.close()
    # As large as may be is answered, also with a body in the same packet, and again on the same connection.
    head = "POST /api/generate HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nX: " + "y" * 30_000
    body = json.dumps({"prompt": "x" * 20_000})
    reader, writer = await request(here, f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}" * 3)
    for _ in range(3):
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)).startswith(b"HTTP/1.1 202 ")
        length = int(re.search(rb"content-length: (\d+)", await reader.readuntil(b"\r\n\r\n"))[1])  # type: ignore[index]
        await reader.readexactly(length)
    writer.close()


async def test_who_sends_too_slowly_and_who_reads_nothing_is_cut_off(here: Deployment) -> None:
    """All at once, since each takes its half minute; beside them a healthy stream, which hears its heartbeats."""
    play = await Play.of(here)
    task_id = await play.create()
    for _ in range(60):
        await play.create("x" * 30_000)
    slow = [
        await request(here, ""),
        await request(here, "GET /healthz HTTP/1.1\r\nHost: HO"),
        await request(here, "POST /api/generate HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n"
                            'Content-Length: 900\r\n\r\n{"prompt'),
    ]  # fmt: skip
    deaf = [await request(here, "GET /api/generate/events HTTP/1.1\r\nHost: HOST\r\n\r\n") for _ in range(5)]
    for _, writer in deaf:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
    stream = f"GET /api/generate/events?taskId={task_id} HTTP/1.1\r\nHost: HOST\r\n\r\n"
    healthy, healthy_writer = await request(here, stream)
    for _ in range(60):  # more than a connection on loopback buffers
        await play.create("y" * 30_000)

    async def drip(writer: asyncio.StreamWriter) -> None:
        for _ in range(90):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.5)

    began = time.monotonic()
    drips = [asyncio.create_task(drip(writer)) for _, writer in slow[1:]]
    for reader, _ in slow:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(10_000), 45)
    assert all(isinstance(end, ConnectionError) for end in await asyncio.gather(*drips, return_exceptions=True))
    assert 20 < time.monotonic() - began < 40

    async def deaf_gone() -> bool:
        # Not only counted out: their sockets, and what was buffered for them, are gone.
        return (await open_streams(here))["sse"] == 1 and open_connections(here) <= 3

    await until(deaf_gone, "those who read nothing are still there", 60)
    heard = await asyncio.wait_for(healthy.read(100_000), 5)
    assert heard.count(b": heartbeat\n\n") >= 1
    await play.finish(task_id)
    assert b'"status":"completed"' in await asyncio.wait_for(healthy.readuntil(b"\r\n0\r\n"), 5)
    for _, writer in (*deaf, *slow):
        writer.transport.abort()
    healthy_writer.close()


async def test_the_process_ends_in_time_whoever_does_not_read(here: Deployment) -> None:
    play = await Play.of(here)
    for _ in range(40):
        await play.create("x" * 30_000)
    sockets = []
    for _ in range(5):
        socket = await connect(here.web.url.replace("http", "ws") + "/api/generate/ws", proxy=None, max_queue=1)
        await socket.send(json.dumps({"type": "subscribe", "all": True}))
        socket.transport.pause_reading()
        sockets.append(socket)
    for _ in range(60):
        await play.create("y" * 30_000)
    began = time.monotonic()
    here.web.signal(15)
    here.web.wait(8)
    assert time.monotonic() - began < 5
    for socket in sockets:
        socket.transport.abort()
