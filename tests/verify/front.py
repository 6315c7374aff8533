"""A proxy in front of a web process: sound, or spoiling one thing, which a check from outside has to find."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import httpx

DROPPED = ("host", "connection", "content-length", "transfer-encoding")


class Front:
    """`await start()`. Strips `prefix`, ends TLS where it has a certificate; what it spoils is in its subclasses."""

    def __init__(self, port: int, prefix: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._prefix = prefix
        self._tls = tls
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()
        self.seen_headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        assert self._server is not None
        scheme = "https" if self._tls else "http"
        return f"{scheme}://localhost:{self._server.sockets[0].getsockname()[1]}{self._prefix}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        await self._client.aclose()

    # What may be spoilt

    def request(self, headers: dict[str, str]) -> None:
        """May change what is asked."""

    def target(self, target: str) -> str:
        return target

    def answer(self, status: int, body: bytes) -> tuple[int, bytes]:
        return status, body

    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for event in events:
            yield event

    # How it works

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, httpx.HTTPError, asyncio.CancelledError):
            pass
        finally:
            self._busy.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head[:-4].split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.seen_headers.append(dict(headers))
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if not path.startswith(f"{self._prefix}/"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return await writer.drain()
        self.request(headers)
        target = self.target(path.removeprefix(self._prefix))
        if "upgrade" in headers:
            return await self._tunnel(f"{method} {target} HTTP/1.1", headers, reader, writer)
        sent = {name: value for name, value in headers.items() if name not in DROPPED}
        asked = self._client.stream(method, target, headers=sent, content=body)
        gone = asyncio.create_task(reader.read())
        answering = asyncio.create_task(self._pass_on(asked, writer))
        try:
            await asyncio.wait((gone, answering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, answering):
                task.cancel()
            await asyncio.gather(gone, answering, return_exceptions=True)
        return None

    async def _pass_on(
        self, asked: contextlib.AbstractAsyncContextManager[httpx.Response], writer: asyncio.StreamWriter
    ) -> None:
        async with asked as response:
            kept = [(k, v) for k, v in response.headers.items() if k.lower() not in DROPPED]
            if response.headers.get("content-type", "").startswith("text/event-stream") and response.status_code == 200:
                # Without a length, as HTTP/1.0 has it: its end is that of the connection.
                writer.write(_head(200, kept))
                async for event in self.stream(_events(response)):
                    writer.write(event)
                    await writer.drain()
            else:
                status, body = self.answer(response.status_code, await response.aread())
                writer.write(_head(status, [*kept, ("content-length", str(len(body)))]) + body)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _tunnel(
        self, first: str, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self._port)
        headers["host"] = f"127.0.0.1:{self._port}"
        outer.write("\r\n".join([first, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode())
        there, back = asyncio.create_task(_pipe(reader, outer)), asyncio.create_task(_pipe(inner, writer))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            outer.transport.abort()
            there.cancel()
            back.cancel()


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers), "connection: close", "", ""]
    return "\r\n".join(lines).encode()


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in response.aiter_raw():
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            yield event + b"\n\n"


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


class Buffering(Front):
    """Keeps a stream until it has ended."""

    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        for event in [event async for event in events]:
            yield event


class Repeating(Front):
    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for event in events:
            yield event
            if b"event: status" in event:
                yield event


class Reordering(Front):
    """Of two changes, the second first."""

    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        held = b""
        async for event in events:
            if b"event: status" not in event and b"event: progress" not in event:
                yield event
            elif held:
                yield event
                yield held
                held = b""
            else:
                held = event
        yield held


class Skipping(Front):
    """Nobody is told that a task has begun."""

    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for event in events:
            if b"event: status" not in event or b'"status":"processing"' not in event:
                yield event


class Endless(Front):
    """A stream stays open when it is over."""

    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for event in events:
            yield event
        await asyncio.sleep(20)


class Forgetful(Front):
    """A cursor is not passed on."""

    def request(self, headers: dict[str, str]) -> None:
        headers.pop("last-event-id", None)

    def target(self, target: str) -> str:
        return target.partition("&after=")[0].partition("?after=")[0] if "/events" in target else target


class Untagged(Front):
    def request(self, headers: dict[str, str]) -> None:
        headers.pop("if-none-match", None)


class Differing(Front):
    """Streams say something else than polls."""

    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for event in events:
            yield event.replace(b'"prompt":"', b'"prompt":"not ')


class Halting(Front):
    """The end of a task never comes over a stream."""

    async def stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for event in events:
            if b'"status":"completed"' not in event:
                yield event


class WithoutSockets(Front):
    """Does not pass on that a connection is to become a WebSocket."""

    def request(self, headers: dict[str, str]) -> None:
        headers.pop("upgrade", None)
