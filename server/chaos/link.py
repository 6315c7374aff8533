"""A link between two parts: a proxy that passes bytes on, and can cut, delay or swallow them.

Stalled is half open: what is sent vanishes and the connection stays. A stream with a hole in it can never be
continued, so when the link is whole again such a connection ends; or, as after a network that forgot it, it stays
silent for ever and its ends have to notice.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeAlias, cast

from server.clients.origin import Address

Mode: TypeAlias = Literal["whole", "cut", "delayed", "stalled"]
HELD_BYTES_MAX = 4 * 1024 * 1024
BACKLOG = 4096


class Link:
    """`await start()`, then set `mode` with `turn()` at any time. One for each pair of parts.

    `listen` is where it listens: a Unix socket that nobody else can open, or None for a port on loopback.
    """

    def __init__(self, name: str, target: Address, listen: Path | None = None) -> None:
        self.name = name
        self.mode: Mode = "whole"
        self.delay_seconds = 0.0
        self.swallowed_bytes = 0
        self.address: Address = listen or ("127.0.0.1", 0)
        self._target = target
        self._ends: set[_End] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def origin(self) -> str:
        """As a URL. Raises TypeError for a Unix socket."""
        if isinstance(self.address, Path):
            raise TypeError(f"{self.name} has no origin")
        return f"http://{self.address[0]}:{self.address[1]}"

    def __len__(self) -> int:
        return len(self._ends) // 2

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self.address, Path):
            self._server = await loop.create_unix_server(self._accept, str(self.address), backlog=BACKLOG)
        else:
            self._server = await loop.create_server(self._accept, *self.address, backlog=BACKLOG)
            host, port = self._server.sockets[0].getsockname()[:2]
            self.address = (host, port)

    def turn(self, mode: Mode, delay_seconds: float = 0.0, *, forget: bool = False) -> None:
        """Be whole, cut, delayed or stalled from now on. `forget`: connections that lost bytes stay silent for ever."""
        self.mode, self.delay_seconds = mode, delay_seconds
        if mode == "cut":
            self.abort_all()
        elif mode != "stalled":
            for end in tuple(self._ends):
                if end.lossy and (not forget or end.peer.gone):
                    end.abort()

    def abort_all(self) -> None:
        """End every connection, as by a reset."""
        for end in tuple(self._ends):
            end.abort()

    async def stop(self) -> None:
        self.mode = "cut"
        if self._server is not None:
            self._server.close()
        for task in tuple(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        self.abort_all()

    def _accept(self) -> "_End":
        near, far = _End(self), _End(self)
        near.peer, far.peer = far, near
        near.when_made = lambda: self._connect(near, far)
        return near

    def _connect(self, near: "_End", far: "_End") -> None:
        if self.mode == "cut":
            near.abort()
            return
        task = asyncio.get_running_loop().create_task(self._reach(near, far))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _reach(self, near: "_End", far: "_End") -> None:
        loop = asyncio.get_running_loop()
        opening: Awaitable[object]
        if isinstance(self._target, Path):
            opening = loop.create_unix_connection(lambda: far, str(self._target))
        else:
            opening = loop.create_connection(lambda: far, *self._target)
        try:
            await opening
        except OSError:
            near.abort()

    def _join(self, end: "_End") -> None:
        self._ends.add(end)

    def _leave(self, end: "_End") -> None:
        self._ends.discard(end)


class _End(asyncio.Protocol):
    """One of the two sockets of a connection: reads, and hands to its peer what is to be written there."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._transport: asyncio.Transport | None = None
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False  # by itself: nothing more comes from here
        self.gone = False
        self.peer: _End
        self.lossy = False
        self.when_made: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so
        with contextlib.suppress(OSError):
            sock = transport.get_extra_info("socket")
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._link._join(self)
        if self.when_made is not None:
            self.when_made()
        if self.peer.gone or self.peer._ended:
            self.abort()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.peer.take(data, asyncio.get_running_loop().time())

    def take(self, data: bytes, now: float) -> None:
        """Write what the peer has read: now, later, or never."""
        link = self._link
        if self.lossy or link.mode == "stalled":
            self.lossy = self.peer.lossy = True
            link.swallowed_bytes += len(data)
            return
        due = now + link.delay_seconds if link.mode == "delayed" else now
        if self._held:
            due = max(due, self._held[-1][0])  # nothing overtakes
        self._held.append((due, data))
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES_MAX and self.peer._transport is not None:
            self.peer._transport.pause_reading()
        self._flush()

    def _flush(self) -> None:
        if self._transport is None or self.gone or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        while self._held and self._held[0][0] <= loop.time():
            _, data = self._held.popleft()
            self._held_bytes -= len(data)
            self._transport.write(data)
        if self._held:
            self._timer = loop.call_at(self._held[0][0], self._due)
            return
        if self._held_bytes <= HELD_BYTES_MAX and self.peer._transport is not None and not self.peer.gone:
            self.peer._transport.resume_reading()
        if self.peer._ended and not self.lossy:
            self._transport.close()

    def _due(self) -> None:
        self._timer = None
        self._flush()

    def pause_writing(self) -> None:
        if self.peer._transport is not None:
            self.peer._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer._transport is not None and not self.peer.gone:
            self.peer._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = self._ended = True
        self._link._leave(self)
        if self._link.mode == "stalled":
            self.lossy = self.peer.lossy = True  # the other end does not hear of it either
        elif self.lossy or exc is not None:
            self.peer.abort()
        else:
            self.peer._flush()

    def abort(self) -> None:
        """Idempotent."""
        for end in (self, self.peer):
            if end._timer is not None:
                end._timer.cancel()
                end._timer = None
            end._held.clear()
            end._ended = True
            if end._transport is not None and not end.gone:
                end._transport.abort()
