"""A server that says exactly what a test wants, byte by byte, and keeps what it was asked.

For what a real server does too seldom: refusing, closing, going silent, saying things twice.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

STATIC = Path(__file__).parents[2] / "static"
PAGE = b"<!doctype html><title>A page of somebody's own</title>"


class Request:
    def __init__(self, target: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(target)
        self.path = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.headers = headers
        self._writer = writer

    @property
    def cursor(self) -> str | None:
        """Where it begins: as the server reads it."""
        return self.headers.get("last-event-id") or self.query.get("after")

    async def answer(self, status: int, kind: str = "text/plain", body: bytes = b"", **headers: str) -> None:
        extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n{extra}"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()

    async def json(self, body: Any, status: int = 200, **headers: str) -> None:
        await self.answer(status, "application/json", json.dumps(body).encode(), **headers)

    async def problem(self, status: int, code: str, **headers: str) -> None:
        await self.json({"status": status, "code": code, "detail": f"because of {code}"}, status, **headers)

    async def stream(self, *frames: str, retry_ms: int = 50, hold: bool = False) -> None:
        """An event stream; `hold`: it stays open and says no more."""
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        self._writer.write((head + f"retry: {retry_ms}\n\n" + "".join(frames)).encode())
        await self._writer.drain()
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

    def to(self, part: str) -> list[Request]:
        return [request for request in self.asked if request.path.endswith(f"/{part}")]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            await self._route(Request(lines[0].split(" ")[1], headers, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the browser has gone, or the test is over: nobody waits for the rest
        finally:
            writer.close()

    async def _route(self, request: Request) -> None:
        if request.path == "/":
            await request.answer(200, "text/html", PAGE)
        elif request.path.startswith("/static/"):
            script = (STATIC / request.path.removeprefix("/static/")).read_bytes()
            await request.answer(200, "text/javascript", script)
        elif not request.path.startswith("/api/"):
            await request.answer(404)
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
