"""The links of a chaos run: what passes, what is late, what is swallowed, and what becomes of the connection."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.chaos.link import Link


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    server = await asyncio.start_unix_server(echo, str(tmp_path / "far"))
    made = Link("test", tmp_path / "far", tmp_path / "near")
    await made.start()
    yield made
    await made.stop()
    await asyncio.sleep(0.02)  # until the far end has heard of it
    server.close()


async def joined(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(link.address))


async def told(link: Link, text: bytes) -> bytes:
    reader, writer = await joined(link)
    try:
        async with asyncio.timeout(2):
            writer.write(text)
            return await reader.readexactly(len(text))
    finally:
        writer.close()


async def is_silent(reader: asyncio.StreamReader, seconds: float = 0.15) -> bool:
    """Nothing comes, not even the end."""
    try:
        async with asyncio.timeout(seconds):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_what_is_sent_arrives(link: Link) -> None:
    big = bytes(range(256)) * 20_000
    reader, writer = await joined(link)
    writer.write(big)
    assert await reader.readexactly(len(big)) == big
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


async def test_it_works_over_tcp(link: Link) -> None:
    assert isinstance(link.address, Path)
    over = Link("tcp", link.address)
    await over.start()
    assert isinstance(over.address, tuple)
    assert over.origin == f"http://127.0.0.1:{over.address[1]}"
    reader, writer = await asyncio.open_connection(*over.address)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await over.stop()


async def test_cut(link: Link) -> None:
    reader, writer = await joined(link)
    writer.write(b"a")
    await reader.readexactly(1)
    link.turn("cut")
    assert await reader.read() == b""
    with pytest.raises((OSError, EOFError)):
        await told(link, b"b")
    link.turn("whole")
    assert await told(link, b"c") == b"c"
    writer.close()


async def test_delayed_and_in_order(link: Link) -> None:
    reader, writer = await joined(link)
    link.turn("delayed", 0.2)
    began = time.monotonic()
    writer.write(b"first ")
    await asyncio.sleep(0.05)
    link.turn("whole")  # what is under way is not overtaken
    writer.write(b"second")
    assert await reader.readexactly(12) == b"first second"
    assert 0.18 < time.monotonic() - began < 1
    writer.close()


async def test_stalled_is_silent_and_open_and_ends_when_the_link_is_whole(link: Link) -> None:
    reader, writer = await joined(link)
    idle, idle_writer = await joined(link)
    idle_writer.write(b"x")
    assert await idle.readexactly(1) == b"x"
    link.turn("stalled")
    writer.write(b"into the void")
    assert await is_silent(reader)
    late, late_writer = await joined(link)
    late_writer.write(b"nor this")
    assert await is_silent(late)
    assert link.swallowed_bytes == 21
    link.turn("whole")
    assert await reader.read() == b""
    assert await late.read() == b""
    idle_writer.write(b"y")  # it lost nothing
    assert await idle.readexactly(1) == b"y"
    for each in (writer, late_writer, idle_writer):
        each.close()


async def test_forgotten_stays_silent_for_ever_and_others_do_not(link: Link) -> None:
    reader, writer = await joined(link)
    link.turn("stalled")
    writer.write(b"into the void")
    await asyncio.sleep(0.05)
    link.turn("whole", forget=True)
    writer.write(b"and again")
    assert await is_silent(reader)
    assert await told(link, b"new") == b"new"
    assert len(link) >= 1
    link.turn("whole")
    assert await reader.read() == b""
    writer.close()


async def test_without_a_far_end(tmp_path: Path) -> None:
    alone = Link("test", tmp_path / "nobody", tmp_path / "near")
    await alone.start()
    reader, writer = await joined(alone)
    assert await reader.read() == b""
    writer.close()
    await alone.stop()
