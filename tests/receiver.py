"""A small HTTP server inside the test, for what our processes call: it sees the request line and bytes as sent.

Each path has a handler; the socket may outlive the server, so that its origin can be told to a process before.
"""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from tests.deployment import listen


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]  # by lower-case name; repeated ones joined with a comma
    raw_headers: list[tuple[str, str]]
    body: bytes
    at: float

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def retried(self) -> int:
        return int(self.headers["upstash-retried"])

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Handler: TypeAlias = Callable[[Request], Awaitable[Reply]]


class Receiver:
    """`on(path, handler)`, `seen` in the order of arrival, `connections` counted even where nothing is said."""

    def __init__(self, listener: socket.socket | None = None) -> None:
        self.listener = listener or listen()
        self._is_ours = listener is None
        self.origin = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.seen: list[Request] = []
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._handlers: dict[str, Handler] = {}
        self.fallback: Handler | None = None  # for all other paths
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Condition()
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Receiver":
        # A copy of the socket: the server closes what it is given.
        self._server = await asyncio.start_server(self._serve, sock=self.listener.dup())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()
        if self._is_ours:
            self.listener.close()

    def on(self, path: str, handler: Handler | Reply) -> str:
        """Answer this path, whatever the query; the URL of it."""

        async def always(_: Request) -> Reply:
            return handler  # type: ignore[return-value]

        self._handlers[path] = always if isinstance(handler, Reply) else handler
        return self.origin + path

    def script(self, path: str, *replies: Reply) -> str:
        """Answer with each of them in turn, then with the last for ever; the URL of it."""
        left = list(replies)

        async def handler(_: Request) -> Reply:
            return left.pop(0) if len(left) > 1 else left[0]

        return self.on(path, handler)

    def at(self, path: str) -> list[Request]:
        return [request for request in self.seen if request.path == path]

    async def wait(self, path: str, count: int = 1, seconds: float = 15) -> list[Request]:
        """What came to the path, as soon as there are `count`."""
        async with self._arrived:
            try:
                async with asyncio.timeout(seconds):
                    await self._arrived.wait_for(lambda: len(self.at(path)) >= count)
            except TimeoutError:
                raise AssertionError(f"{len(self.at(path))} of {count} requests came to {path}") from None
        return self.at(path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read(reader)
        handler = self._handlers.get(request.path, self.fallback)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async with self._arrived:
                self.seen.append(request)
                self._arrived.notify_all()
            # What an earlier test has left behind is taken and forgotten.
            reply = await handler(request) if handler else Reply(200)
        finally:
            self.in_flight -= 1
        head = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(reply.body)}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*head, "", ""]).encode() + reply.body)
        await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    raw = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)]
    headers: dict[str, str] = {}
    for name, value in raw:
        low = name.lower()
        headers[low] = f"{headers[low]},{value}" if low in headers else value
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, raw, body, time.monotonic())


async def until(condition: Callable[[], Awaitable[Any]], what: str, seconds: float = 15) -> Any:
    """What the condition gives as soon as it is true; an assertion that names it when the time is up."""
    deadline = time.monotonic() + seconds
    while not (result := await condition()):
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        await asyncio.sleep(0.03)
    return result
