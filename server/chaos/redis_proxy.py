"""A Redis that misbehaves: a proxy before the real one that swallows, doubles or reorders what it pushes.

It confirms subscriptions and answers pings like any other, which is what makes it hard to notice.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import quote, unquote, urlsplit

Mode: TypeAlias = Literal["honest", "swallow", "double", "reorder"]


async def _read_value(reader: asyncio.StreamReader) -> bytes:
    """One RESP value as its bytes (RESP2 and RESP3)."""
    line = await reader.readuntil(b"\r\n")
    kind, count = line[:1], line[1:-2]
    if kind in b"$=!" and count != b"-1":
        return line + await reader.readexactly(int(count) + 2)
    if kind in b"*>~" and count != b"-1":
        return line + b"".join([await _read_value(reader) for _ in range(int(count))])
    if kind == b"%":
        return line + b"".join([await _read_value(reader) for _ in range(2 * int(count))])
    return line


class RedisProxy:
    """Use `await start(url)`; set `mode` at any time; `kept` counts the messages it did not pass on as they came."""

    def __init__(self, mode: Mode = "honest") -> None:
        self.mode: Mode = mode
        self.kept = 0
        self._server: asyncio.Server | None = None
        self._path = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, url: str, listen: Path) -> str:
        """Listen on the Unix socket `listen` before the Redis at `url` (another one); the URL to use instead."""
        self._path = unquote(urlsplit(url).path)
        self._server = await asyncio.start_unix_server(self._serve, str(listen))
        return f"unix://{quote(str(listen))}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (a server runs this in one)
        self._tasks.add(task)
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # there is no Redis now, or we are done
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._path)
        ways = [
            asyncio.create_task(self._forward(reader, upstream_writer)),
            asyncio.create_task(self._answer(upstream_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            upstream_writer.close()

    @staticmethod
    async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = b""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                value = await _read_value(reader)
                if value[:1] in b"*>" and b"\r\n$7\r\nmessage\r\n" in value[:24]:
                    value, held = self._spoil(value, held)
                writer.write(value)
                await writer.drain()

    def _spoil(self, value: bytes, held: bytes) -> tuple[bytes, bytes]:
        if self.mode != "honest":
            self.kept += 1
        match self.mode:
            case "swallow":
                return b"", held
            case "double":
                return value + value, held
            case "reorder":
                return (value + held, b"") if held else (b"", value)
            case _:
                return held + value, b""
