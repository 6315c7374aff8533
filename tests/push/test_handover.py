"""A connection that was handed over to a stream, byte by byte: whatever HTTP allows a client to do."""

import asyncio
import json
import socket
import struct

import pytest

from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.playing import Play
from tests.push.test_slow_clients import open_connections, open_streams, request, until

COMPLETED = b'"status":"completed"'


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    return await deploy(dispatchers=0, generator=False)


@pytest.fixture
async def play(here: Deployment) -> Play:
    return await Play.of(here)


def follow(task_id: str, version: str = "1.1", method: str = "GET", more: str = "") -> str:
    return f"{method} /api/generate/events?taskId={task_id} HTTP/{version}\r\nHost: HOST\r\n{more}\r\n"


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)


async def body_of(reader: asyncio.StreamReader) -> bytes:
    """The rest of the answer, as a strict reader of chunks takes it; the connection must end with it."""
    body = b""
    while size := int(await asyncio.wait_for(reader.readuntil(b"\r\n"), 10), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await asyncio.wait_for(reader.read(), 10) == b"\r\n"
    return body


async def test_frames_are_chunks_and_the_connection_ends_with_them(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    reader, writer = await request(here, follow(task_id))
    head = (await head_of(reader)).lower()
    assert head.startswith(b"http/1.1 200 ")
    assert b"\r\ntransfer-encoding: chunked\r\n" in head
    assert b"\r\nconnection: close\r\n" in head
    assert b"\r\nx-request-id: " in head
    await play.report(task_id, 10, message="a\rb\nc\u2028d")
    await play.finish(task_id)
    body = await body_of(reader)
    assert body.count(b"event: sync\n") == 1
    assert COMPLETED in body
    writer.close()


async def test_whatever_else_a_client_does_with_it(here: Deployment, play: Play) -> None:
    """More requests behind the first, bytes on the stream, a body, HTTP/1.0, HEAD: none of it harms anybody."""
    ended, open_one = await play.create(), await play.create()
    await play.finish(ended)
    for head in (
        follow(open_one) * 2,
        follow(open_one) + "GET /healthz HTTP/1.1\r\nHost: HOST\r\n\r\n",
        follow(open_one, more="Content-Length: 5\r\n") + "xxxxx",
        follow(open_one, more="Content-Length: 5\r\n") + "xx",
        follow(open_one, more="Expect: 100-continue\r\n"),
        follow(open_one, version="1.0"),
        follow(open_one, more="Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n"),
    ):
        reader, writer = await request(here, head)
        data = await asyncio.wait_for(reader.readuntil(b"event: status"), 10)
        assert b" 200 " in data
        writer.write(b"\x00garbage\r\n\r\nGET / HTTP/1.1\r\n\r\n" * 100)
        await writer.drain()
        writer.transport.abort()
    reader, writer = await request(here, follow(open_one, method="HEAD"))
    bare = (await head_of(reader)).lower()
    assert bare.startswith(b"http/1.1 200 ")
    assert b"text/event-stream" in bare
    # The connection was not handed over: it takes another request.
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
    writer.close()
    # One that had ended is told whole and at once.
    reader, writer = await request(here, follow(ended))
    await head_of(reader)
    assert COMPLETED in await body_of(reader)
    writer.close()

    async def nobody_left() -> bool:
        return sum((await open_streams(here)).values()) == 0

    await until(nobody_left, "some are still counted")
    assert "Traceback" not in here.web.tail()
    assert '"level": "error"' not in here.web.tail()


async def test_a_client_that_resets_or_closes_its_half(here: Deployment, play: Play) -> None:
    task_id = await play.create()
    for reset in (True, False):
        reader, writer = await request(here, follow(task_id))
        await asyncio.wait_for(reader.readuntil(b"event: status"), 10)
        if reset:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.write_eof()

        async def gone() -> bool:
            return (await open_streams(here))["sse"] == 0

        await until(gone, f"reset: {reset}")
        writer.transport.abort()


async def test_many_come_and_go(here: Deployment, play: Play) -> None:
    """None is kept, by us or by the kernel; and the process says goodbye to those that are there when it ends."""
    task_id = await play.create()

    async def one(number: int) -> None:
        reader, writer = await request(here, follow(task_id))
        if number % 3:
            await asyncio.wait_for(reader.readuntil(b"event: sync"), 20)
        writer.transport.abort()

    for _ in range(10):
        await asyncio.gather(*(one(number) for number in range(50)))

    async def nobody_left() -> bool:
        return (await open_streams(here))["sse"] == 0 and open_connections(here) <= 2

    await until(nobody_left, "some are still there")
    opened = [await request(here, follow(task_id)) for _ in range(50)]
    for reader, _ in opened:
        await asyncio.wait_for(reader.readuntil(b"event: status"), 10)
    here.web.signal(15)
    retries = set()
    for reader, writer in opened:
        said = await asyncio.wait_for(reader.read(), 5)
        assert said.endswith(b"\r\n0\r\n\r\n")
        retry, _, bye = said.partition(b"retry: ")[2].partition(b"\n\n")
        retries.add(int(retry))
        assert bye.startswith(b"event: bye\n")
        assert json.loads(bye.partition(b"data: ")[2].partition(b"\n")[0]) == {"reason": "restarting"}
        writer.close()
    here.web.wait(3)
    assert len(retries) > 25, "they do not all come back at once"
    assert all(500 <= retry <= 1_500 for retry in retries)
    assert "error" not in here.web.tail()
