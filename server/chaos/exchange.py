"""HTTP/1.1 as the chaos run needs it, cheap enough for hundreds of clients: a connection for each request."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

import httptools
import msgspec

from server.chaos.link import Address

CONNECT_SECONDS_MAX = 5.0
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


class Streaming(asyncio.Protocol):
    """One request whose answer is read as it comes: `on_body` per piece; `done` when it has ended, one way or another.

    `whole`: the answer came to its end. `heard` is the loop's time of the last bytes.
    """

    def __init__(self, request: bytes, on_body: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self._on_body = on_body
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.whole = False
        self.heard = loop.time()
        self.done: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.status == 200:
            self._on_body(body)

    def on_message_complete(self) -> None:
        self.whole = True
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def abort(self) -> None:
        """Idempotent."""
        if self._transport is not None:
            self._transport.abort()


async def connect(protocol: asyncio.Protocol, address: Address) -> bool:
    """Whether the protocol is connected now."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            if isinstance(address, tuple):
                await loop.create_connection(lambda: protocol, *address)
            else:
                await loop.create_unix_connection(lambda: protocol, str(address))
            return True
    return False
