"""HTTP/1.1 of a client, cheap enough for hundreds of them: a connection for each request, read as it comes."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import cast

import httptools
import msgspec

from server.clients.origin import Origin

CONNECT_SECONDS_MAX = 5.0
BODY_BYTES_MAX = 32 * 1024 * 1024


class BrokenAnswer(Exception):
    """The connection was made, and there was no whole answer of HTTP."""


class Answer(msgspec.Struct, frozen=True):
    """Headers by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes


class Event(msgspec.Struct):
    """A server-sent event as its fields say; one that only sets `retry` or is a comment has no name."""

    name: str = ""
    data: bytes = b""
    id: str = ""
    retry_ms: int | None = None
    is_comment: bool = False


def parse_event(lines: bytes) -> Event:
    """The lines between two empty ones. Raises ValueError where they are none of ours."""
    event = Event(is_comment=lines.startswith(b":"))
    for line in lines.split(b"\n"):
        field, _, value = line.partition(b": ")
        match field:
            case b"event":
                event.name = value.decode()
            case b"data":
                event.data = value
            case b"id":
                event.id = value.decode()
            case b"retry":
                event.retry_ms = int(value)
    return event


class Streaming(asyncio.Protocol):
    """One request whose answer is read as it comes: `on_body` per piece; `done` when it has ended, one way or another.

    `whole`: the answer came to its end. `heard` is the loop's time of the last bytes, `asked` that of the request, and
    `begun` that of the first bytes of the body, 0 without any.
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
        self.heard = self.asked = loop.time()
        self.begun = 0.0
        self.done: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so
        self._transport.write(self._request)
        self.asked = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def eof_received(self) -> None:
        """The end of a body without a length: proxies that speak HTTP/1.0 send such."""
        if self.status and not {"content-length", "transfer-encoding"} & self.headers.keys():
            self.whole = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.begun = self.begun or self.heard
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


class Whole(Streaming):
    """One whose body is kept; one beyond BODY_BYTES_MAX is broken off."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request, self._keep)
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > BODY_BYTES_MAX:
            self.abort()
        else:
            self._pieces.append(piece)


async def connect(protocol: asyncio.Protocol, origin: Origin) -> None:
    """Raises OSError (that of a name or of TLS among them) or TimeoutError."""
    async with asyncio.timeout(CONNECT_SECONDS_MAX):
        await asyncio.get_running_loop().create_connection(lambda: protocol, *origin.address, ssl=origin.tls)


async def fetch(
    origin: Origin,
    method: str,
    target: str,
    *,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """Ask over a connection of its own. Raises OSError, TimeoutError or BrokenAnswer."""
    client = Whole(origin.request(method, target, {"Connection": "close", **(headers or {})}, body))
    await connect(client, origin)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.shield(client.done)
    finally:
        client.abort()
    if not client.whole:
        raise BrokenAnswer(f"no whole answer within {seconds:g} s" if not client.done.done() else "cut off")
    return Answer(client.status, client.headers, client.body)
