"""A server that says exactly what a test wants, byte by byte, and keeps what it was asked.

For what a real server does too seldom: refusing, closing, going silent, saying things twice.
"""

import asyncio
import json
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol

STATIC = Path(__file__).parents[2] / "static"
PAGE = b"<!doctype html><title>A page of somebody's own</title>"
ALLOWING = (
    "Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Headers: authorization, content-type\r\n"
    "Access-Control-Expose-Headers: Retry-After\r\n"
)


class Socket:
    """The server's end of a WebSocket."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._protocol = ServerProtocol()
        self._reader = reader
        self._writer = writer
        self._protocol.receive_data(head)
        (handshake,) = self._protocol.events_received()
        assert isinstance(handshake, Handshake)
        self._protocol.send_response(self._protocol.accept(handshake))
        self._flush()

    def _flush(self) -> None:
        self._writer.write(b"".join(self._protocol.data_to_send()))

    async def hear(self) -> Any:
        """The next message of the client."""
        while True:
            data = await self._reader.read(65_536)
            if not data:
                raise ConnectionError
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    return json.loads(bytes(event.data))

    async def say(self, *messages: Any) -> None:
        for message in messages:
            self._protocol.send_text(json.dumps(message).encode())
        self._flush()
        await self._writer.drain()

    def close(self, code: int) -> None:
        self._protocol.send_close(code)
        self._flush()


class Request:
    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowed: str) -> None:
        lines = head.decode().split("\r\n")
        self.method, target, _ = lines[0].split(" ")
        parts = urlsplit(target)
        self.path = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        self._head = head
        self._allowed = ALLOWING.format(origin=allowed) if allowed else ""
        self._reader = reader
        self._writer = writer

    def upgrade(self) -> Socket:
        return Socket(self._head, self._reader, self._writer)

    @property
    def cursor(self) -> str | None:
        """Where it begins: as the server reads it."""
        return self.headers.get("last-event-id") or self.query.get("after")

    async def answer(self, status: int, kind: str = "text/plain", body: bytes = b"", **headers: str) -> None:
        extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n{self._allowed}{extra}"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()

    async def json(self, body: Any, status: int = 200, **headers: str) -> None:
        await self.answer(status, "application/json", json.dumps(body).encode(), **headers)

    async def problem(self, status: int, code: str, **headers: str) -> None:
        await self.json({"status": status, "code": code, "detail": f"because of {code}"}, status, **headers)

    async def stream(self, *frames: str, retry_ms: int = 50, hold: bool = False, piece: int = 0) -> None:
        """An event stream; `hold`: it stays open and says no more; `piece`: so many bytes at a time."""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n{self._allowed}\r\n"
        self._writer.write(head.encode())
        body = (f"retry: {retry_ms}\n\n" + "".join(frames)).encode()
        for begin in range(0, len(body), piece or len(body)):
            self._writer.write(body[begin : begin + (piece or len(body))])
            await self._writer.drain()
            await asyncio.sleep(0.001 if piece else 0)
        if hold:
            await asyncio.Event().wait()


Handler: TypeAlias = Callable[[Request], Awaitable[None]]


def frame(event: str, data: Any, event_id: object = None) -> str:
    lead = "" if event_id is None else f"id: {event_id}\n"
    return f"{lead}event: {event}\ndata: {json.dumps(data)}\n\n"


SYNC = frame("sync", {"from": 0, "to": 1, "mode": "snapshot", "recovered": False})


def task(version: int, status: str = "processing", **members: Any) -> dict[str, Any]:
    """A snapshot of the task `t`."""
    return {"taskId": "t", "status": status, "version": version, "createdAt": "2026-01-01T00:00:00Z", **members}


def change(version: int, status: str = "processing") -> str:
    return frame("status" if status != "processing" else "progress", task(version, status), version)


class Scripted:
    """`events`, `status` and so on are handlers by the last part of the path; `asked` is what came."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        self.asked: list[Request] = []
        self.url = ""
        self.allowed = ""  # the origin whose pages may ask, besides its own

    def to(self, part: str) -> list[Request]:
        return [request for request in self.asked if request.path.endswith(f"/{part}")]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._route(Request(await reader.readuntil(b"\r\n\r\n"), reader, writer, self.allowed))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the browser has gone, or the test is over: nobody waits for the rest
        finally:
            writer.close()

    async def _route(self, request: Request) -> None:
        if request.method == "OPTIONS":
            await request.answer(204)
        elif request.path == "/":
            await request.answer(200, "text/html", PAGE)
        elif request.path.startswith("/static/"):
            path = STATIC / request.path.removeprefix("/static/")
            await request.answer(200, mimetypes.guess_type(path)[0] or "", path.read_bytes())
        elif request.path == "/dashboard":
            await request.answer(200, "text/html", (STATIC / "dashboard.html").read_bytes())
        elif request.path == "/api/session":  # without sign-in
            await request.json({"userId": "00000000-0000-4000-8000-000000000001", "expiresAt": None, "operator": True})
        elif not request.path.startswith("/api/"):
            await request.answer(200 if request.path == "/healthz" else 404)
        else:
            self.asked.append(request)
            handler = self.handlers.get(request.path.rsplit("/", 1)[-1])
            await (handler(request) if handler else request.problem(404, "not_found"))


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    """Serve on loopback for as long as the block runs."""
    script = Scripted()
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        connections.add(connection)
        try:
            await script.serve(reader, writer)
        finally:
            connections.discard(connection)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    try:
        yield script
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
