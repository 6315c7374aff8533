"""HTTP/1.1 as proxies and a played generator need it: messages as they came, a connection for each request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from server.clients.origin import Address
from server.clients.streaming import CONNECT_SECONDS_MAX

HEAD_BYTES_MAX = 65_536
BODY_BYTES_MAX = 32 * 1024 * 1024


class Message(msgspec.Struct):
    """A request or an answer as it was read: `first` line, headers by lower-case name, `head` with its empty line."""

    first: str
    headers: dict[str, str]
    body: bytes
    head: bytes

    @property
    def raw(self) -> bytes:
        return self.head + self.body

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])

    @property
    def target(self) -> str:
        return self.first.split(" ")[1]


async def read_message(reader: asyncio.StreamReader) -> Message:
    """The next one, with its Content-Length. Raises EOFError, ConnectionError or LimitOverrunError."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0))
    if length > BODY_BYTES_MAX:
        raise ConnectionError("a body beyond all bounds")
    return Message(first, headers, await reader.readexactly(length), head)


def write_message(first: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def open_stream(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Raises OSError or TimeoutError."""
    async with asyncio.timeout(CONNECT_SECONDS_MAX):
        if isinstance(address, tuple):
            return await asyncio.open_connection(*address, limit=HEAD_BYTES_MAX)
        return await asyncio.open_unix_connection(str(address), limit=HEAD_BYTES_MAX)


async def ask(address: Address, request: bytes, seconds: float) -> Message | None:
    """Send a request over a connection of its own; the answer, or None when there was none (whole) in time."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await open_stream(address)
            writer.write(request)
            return await read_message(reader)
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()


async def serve(
    answer: Callable[[Message], Awaitable[bytes | None]], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer requests one after the other; None ends the connection without a word. Stops when its peer does."""
    try:
        while (said := await answer(await read_message(reader))) is not None:
            writer.write(said)
            await writer.drain()
    except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
        pass
    finally:
        writer.transport.abort()
