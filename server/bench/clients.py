"""What the bench plays: QStash that accepts and later calls back, browsers that follow, and clients that poll.

Written to cost little, because it shares the machine with what it measures.
"""

import asyncio
import base64
import re
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
import msgspec

from server.dispatch.signature import sign

AT_ONCE = 50
ARRIVE_SECONDS_MAX = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Publisher:
    """Accepts messages as the QStash API does, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self._arrived = asyncio.Event()
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls, listener: socket.socket) -> "Publisher":
        publisher = cls()
        loop = asyncio.get_running_loop()
        publisher._server = await loop.create_server(lambda: _Accepting(publisher), sock=listener.dup())
        return publisher

    def accepted(self) -> bytes:
        """One message more; the answer to it."""
        self.count += 1
        self._arrived.set()
        return b'{"messageId":"msg_%d"}' % self.count

    async def wait_for(self, count: int) -> None:
        """Until that many messages have come in all."""
        while self.count < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()


class _Accepting(asyncio.Protocol):
    """One connection of the outbox: requests with a Content-Length, answered in order."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (TCP connections are)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._data, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._data) < whole or self._transport is None:
                return
            self._data = self._data[whole:]
            body = self._publisher.accepted()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._transport.write(head + body)


class Callbacks:
    """Creates tasks and ends them with signed callbacks; `sent` and `answered` hold when, by task id."""

    def __init__(self, origin: str, key: str) -> None:
        self._origin = origin
        self._key = key
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        self._client = httpx.AsyncClient(base_url=origin, trust_env=False, timeout=30, limits=limits)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.sent: dict[str, float] = {}
        self.answered: dict[str, float] = {}

    async def create(self, count: int) -> list[str]:
        async def one(number: int) -> str:
            async with self._slots:
                answer = await self._client.post("/api/generate", json={"prompt": f"picture number {number}"})
                answer.raise_for_status()
                return str(answer.json()["taskId"])

        return list(await asyncio.gather(*map(one, range(count))))

    async def complete(self, tasks: Sequence[str], rate: float) -> None:
        """One callback for each task, `rate` a second, whether the ones before were answered or not."""
        began = time.perf_counter()
        sending = []
        for number, task in enumerate(tasks):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            sending.append(asyncio.create_task(self._one(task)))
        await asyncio.gather(*sending)

    async def _one(self, task: str) -> None:
        path = f"/api/generate/callback?task={task}&attempt=1"
        answer = base64.b64encode(b'{"result":"https://example.com/picture.png"}').decode()
        body = msgspec.json.encode({"status": 200, "body": answer, "retried": 0, "maxRetries": 3})
        signature = sign(self._key, self._origin + path, body, time.time(), f"jwt_{task}")
        self.sent[task] = began = time.perf_counter()
        response = await self._client.post(path, content=body, headers={"Upstash-Signature": signature})
        response.raise_for_status()
        self.answered[task] = time.perf_counter() - began

    async def close(self) -> None:
        await self._client.aclose()


class _Stream(asyncio.Protocol):
    """One EventSource: knows when its stream began and when its task ended."""

    def __init__(self, task: str, host: str) -> None:
        self._request = (
            f"GET /api/generate/events?taskId={task} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n"
        ).encode()
        self._tail = b""
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[float] = loop.create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (TCP connections are)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        data = self._tail + data
        if not self.begun.done() and b"event: status" in data:
            self.begun.set_result(None)
        if not self.ended.done() and b'"status":"completed"' in data:
            self.ended.set_result(now)
        self._tail = data[-64:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_exception(exc or ConnectionError("the stream was closed before it began"))


class Clients:
    """Follows many tasks, each over a connection of its own."""

    def __init__(self, origin: str) -> None:
        self._address = urlsplit(origin)
        self._streams: dict[str, _Stream] = {}

    async def follow(self, tasks: Sequence[str]) -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        host, port = self._address.hostname or "127.0.0.1", self._address.port or 80

        async def one(task: str) -> None:
            async with slots:
                _, stream = await asyncio.get_running_loop().create_connection(
                    lambda: _Stream(task, self._address.netloc), host, port
                )
                self._streams[task] = stream
                await asyncio.wait_for(stream.begun, ARRIVE_SECONDS_MAX)

        await asyncio.gather(*map(one, tasks))

    async def arrived(self, tasks: Sequence[str]) -> dict[str, float]:
        """When the end of each task was read; those not read in a while are left out."""
        ends = [self._streams[task].ended for task in tasks]
        await asyncio.wait(ends, timeout=ARRIVE_SECONDS_MAX)
        return {task: self._streams[task].ended.result() for task in tasks if self._streams[task].ended.done()}

    async def close(self) -> None:
        for stream in self._streams.values():
            if stream.transport is not None:
                stream.transport.abort()
        await asyncio.sleep(0.5)


class Poller:
    """Asks for each task once a second until it has ended; `seen` holds when that was seen."""

    def __init__(self, origin: str, tasks: Sequence[str]) -> None:
        self._origin = origin
        self._tasks = tasks
        self.seen: dict[str, float] = {}

    async def run(self, seconds: float) -> None:
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        until = time.perf_counter() + seconds
        async with httpx.AsyncClient(base_url=self._origin, trust_env=False, timeout=30, limits=limits) as client:

            async def one(number: int, task: str) -> None:
                await asyncio.sleep(number / len(self._tasks))
                while task not in self.seen and time.perf_counter() < until:
                    asked = time.perf_counter()
                    answer = await client.get("/api/generate/status", params={"taskId": task})
                    if answer.json()["status"] == "completed":
                        self.seen[task] = time.perf_counter()
                    await asyncio.sleep(max(0.0, asked + 1.0 - time.perf_counter()))

            await asyncio.gather(*(one(number, task) for number, task in enumerate(self._tasks)))
