"""A stream of server-sent events on a socket of its own: no task of the event loop, no ASGI, no queue.

Following a task is an upgrade of an HTTP connection, as one to WebSocket is: once the head of the response is out,
the socket is handed to a `Stream`, which writes when its follower has something to say (protocols.py has the other
half of the hand-over). What is said, and in which order, is the same as on the portable path (sse.py).
"""

import asyncio
from collections import deque
from collections.abc import MutableSet
from typing import Any, Protocol

import structlog

from server.metrics import Metrics
from server.push import wire
from server.push.follow import Follower
from server.push.hub import Item
from server.push.turns import Copies, Outlet, Turns

log = structlog.get_logger()

HEARTBEAT_SECONDS = 15
# A client that takes nothing at all for this long is cut off, and resumes from its cursor.
SEND_SECONDS_MAX = 30.0
# Of one write, where there are several; and what a transport holds before it says that the client does not keep up.
WRITE_BYTES = 16_384
END = b"0\r\n\r\n"
HEARTBEAT = wire.chunk(wire.HEARTBEAT)


class Frames(Protocol):
    """What a stream says (sse.Framer): `done` once the last word was said."""

    done: bool

    def begin(self) -> list[bytes]: ...

    def news(self) -> list[bytes]: ...

    def bye(self) -> bytes: ...


class Pulse:
    """The heartbeats of all streams of a process: each second a fifteenth of them. `run()` until cancelled."""

    def __init__(self) -> None:
        self._slots: list[set[Stream]] = [set() for _ in range(HEARTBEAT_SECONDS)]
        self._turn = 0

    def add(self, stream: "Stream") -> int:
        """The slot, for remove(): the one that comes up last."""
        slot = (self._turn - 1) % HEARTBEAT_SECONDS
        self._slots[slot].add(stream)
        return slot

    def remove(self, stream: "Stream", slot: int) -> None:
        self._slots[slot].discard(stream)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.beat()

    def beat(self) -> None:
        """One second has passed."""
        for stream in tuple(self._slots[self._turn]):
            stream.beat()
        self._turn = (self._turn + 1) % HEARTBEAT_SECONDS


class Streams:
    """What all streams of a process share."""

    def __init__(self, turns: Turns, pulse: Pulse, metrics: Metrics) -> None:
        self.turns = turns
        self.pulse = pulse
        self.open = metrics.sse.open
        self.copies = Copies(turns, Item.chunk, metrics.sse.sent, metrics.send_seconds)


class Stream(Outlet, asyncio.Protocol):
    """The protocol of a connection that was handed over. It closes its follower when the connection is lost."""

    __slots__ = (
        "_backlog",
        "_connections",
        "_follower",
        "_frames",
        "_paused",
        "_reading",
        "_slot",
        "_streams",
        "_subscription",
        "_transport",
        "_unread",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        connections: MutableSet[Any],
        follower: Follower,
        frames: Frames,
        streams: Streams,
    ) -> None:
        super().__init__(streams.turns)
        self._transport = transport
        self._connections = connections
        self._follower = follower
        self._subscription = follower.subscription
        self._frames = frames
        self._streams = streams
        self._backlog: deque[bytes] | None = None  # what waits for the client to read
        self._paused: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._slot = streams.pulse.add(self)
        connections.add(self)
        streams.open.inc()

    def begin(self) -> None:
        """Once the transport knows this protocol: say how it joined, and go on from there."""
        self._transport.set_write_buffer_limits(high=WRITE_BYTES)
        self._write(self._frames.begin())
        self._follower.wake_with(self.wake)

    # What the hub and the process have to say

    def beat(self) -> None:
        """Nothing happened, perhaps: proxies and clients are to know that the stream is alive."""
        if self._paused is None and not self._transport.is_closing():
            self._transport.write(HEARTBEAT)

    def shutdown(self) -> None:
        """The server stops: uvicorn asks this of every connection."""
        if not self._transport.is_closing():
            self._close(wire.chunk(self._frames.bye()))

    @property
    def urgent(self) -> bool:
        return self._subscription.urgent

    def flush(self, now: float) -> None:
        """Most of the time there is nothing to decide: what waits is written as it is."""
        subscription = self._subscription
        if subscription.special:
            self._look(now)
            return
        items, transport = subscription.inbox, self._transport
        if items is None or transport.is_closing():
            return
        if now < self._rests_until and not subscription.urgent:
            self._turns.park(self, self._rests_until)
            return
        subscription.inbox = None
        subscription.urgent = False
        self._rests_until = self._turns.until
        transport.write(self._streams.copies.of(items))

    def _look(self, now: float) -> None:
        if self._transport.is_closing() or self._reading is not None:
            return
        if self._paused is not None:
            if self._follower.ended is not None:
                self._transport.abort()  # who does not read is not waited for: it would keep what it may not have
        elif self._backlog:
            self._write([])
            self._subscription.attend()  # for what has come since
        elif self._follower.closing:
            self._close(wire.chunk(self._frames.bye()))
        elif self._follower.behind:
            self._reading = asyncio.get_running_loop().create_task(self._catch_up())
        elif not self.resting(now):
            frames = self._frames.news()
            if frames:
                self.rest()
            self._write(frames)
            at_ease = self._paused is None and self._backlog is None
            self._subscription.special = not (at_ease and self._follower.ordinary)

    async def _catch_up(self) -> None:
        try:
            whole = await self._follower.catch_up()
        except Exception as error:
            log.error("stream_failed", **self._follower.subject, exc_info=error)
            self._transport.abort()
            return
        finally:
            self._reading = None
        if whole or self._subscription.inbox:
            self._subscription.attend()  # else it is woken when it is time to try again

    def _write(self, frames: list[bytes]) -> None:
        """Few writes, and no more than the client takes: the rest waits here."""
        backlog = self._backlog if self._backlog is not None else deque()
        backlog.extend(frames)
        while backlog and self._paused is None:
            piece, size = [], 0
            while backlog and size < WRITE_BYTES:
                piece.append(backlog.popleft())
                size += len(piece[-1])
            data = wire.chunk(b"".join(piece))
            if not backlog and self._frames.done:
                self._close(data)
            else:
                self._transport.write(data)
        self._backlog = backlog or None
        if self._frames.done and self._backlog is None and not self._transport.is_closing():
            self._close(b"")

    def _close(self, last: bytes) -> None:
        self._transport.write(last + END)
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # What the transport has to say

    @staticmethod  # a transport keeps it: so it is one function for all, not a bound method for each
    def data_received(data: bytes) -> None:
        """A client has nothing to say on a stream; what it sends is dropped, and its end is still seen."""

    def pause_writing(self) -> None:
        self._subscription.special = True
        self._unread = self._transport.get_write_buffer_size()
        self._paused = asyncio.get_running_loop().call_later(SEND_SECONDS_MAX, self._cut_off)

    def resume_writing(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        self._subscription.attend()

    def _cut_off(self) -> None:
        if self._transport.get_write_buffer_size() < self._unread:
            self.pause_writing()  # slow, but it reads
            return
        log.info("slow_client_cut_off", transport="sse", **self._follower.subject)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._paused is not None:
            self._paused.cancel()
        if self._reading is not None:
            self._reading.cancel()
        self._connections.discard(self)
        self._streams.pulse.remove(self, self._slot)
        self._follower.close()
        self._streams.open.dec()
