"""Clients that follow tasks as browsers do, come back from their cursor after every break, and note what they saw.

One cursor for all transports: a task's version; of all tasks the opaque one. A follower goes away by itself now and
then, unless it is steady, and resumes over another transport and another web process.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from server.clients.crowd import Crowd
from server.clients.socket import Socket
from server.clients.streaming import Event, Streaming, Whole, connect, parse_event
from server.clients.views import STREAMS, TRANSPORTS, Follow, Leg, Seen, Transport

EVENTS, STATUS, SOCKET = "/api/generate/events", "/api/generate/status", "/api/generate/ws"
WEIGHTS: dict[Transport, float] = {"sse": 3, "sse_after": 2, "websocket": 4, "longpoll": 2, "poll": 1}
ALL_TRANSPORTS = ("sse", "sse_after", "websocket")
PING_SECONDS = 8.0
WAIT_SECONDS = 10
POLL_SECONDS = 1.5
# A stream ends at once after its task has; a WebSocket stays, and is listened to for a moment more.
UNENDED_SECONDS = 2.0
AFTER_SECONDS = 0.2
# What a server that never stops can make a client keep.
EVENT_BYTES_MAX = 4 * 1024 * 1024
SEEN_MAX = 50_000
PROBLEMS_MAX = 100
# To one that was accepted: away for now (503), too many (429). All else that is no success is a defect.
PASSING = frozenset({0, 200, 204, 304, 429, 503})
MALFORMED = (ValueError, KeyError, TypeError, msgspec.MsgspecError)


class _Head(msgspec.Struct, rename="camel"):
    task_id: str
    version: int
    status_version: int
    status: str
    attempt: int


class _Told(msgspec.Struct):
    """A message over a WebSocket."""

    type: str
    task: _Head | None = None
    cursor: str = ""
    sync: dict[str, object] | None = None
    problem: dict[str, object] | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_told = msgspec.json.Decoder(_Told).decode


class Follower:
    """`await run()` until its task has ended, or (all tasks) its time is over; then it is on record.

    It begins with the transport `first`; `steady`: it stays with that one, and breaks nothing off by itself.
    `ended`: it has seen the end of its task.
    """

    def __init__(self, crowd: Crowd, task: str | None, *, first: Transport | None = None, steady: bool = False) -> None:
        self._crowd = crowd
        self._draw = crowd.draw
        self._first = first
        self._steady = steady
        self.follow = Follow(crowd.number(), task)
        self.cursor = 0
        self.ended = False
        self._full = False
        self._retry_seconds = 1.0
        self._until = time.monotonic() + self._draw.uniform(*crowd.pace.all)

    async def run(self) -> None:
        try:
            transport = self._first or self._choose(None)
            while not self._over():
                planned = await self._visit(transport)
                if self._over():
                    break
                if not self._steady and (planned or self._draw.random() < 0.3):
                    transport = self._choose(transport)
                await self._pause(transport, planned)
            if self.ended and self._draw.random() < 0.25:
                await self._visit("sse")  # as an EventSource does by itself after the end: it must be told nothing
        finally:
            self._crowd.record(self.follow)

    def _over(self) -> bool:
        if self.ended or self._full or self._crowd.quitting.is_set():
            return True
        if self.follow.task is None and time.monotonic() > self._until and not self._crowd.ending and self.cursor:
            self.follow.left = True
            return True
        return False

    def _choose(self, before: Transport | None) -> Transport:
        names = [name for name in TRANSPORTS if name != before]
        if self.follow.task is None:
            names = [name for name in names if name in ALL_TRANSPORTS]
        return self._draw.choices(names, [WEIGHTS[name] for name in names])[0]

    async def _pause(self, transport: Transport, planned: bool) -> None:
        seconds = self._draw.uniform(0.2, 1.0)
        if planned:
            seconds = 0.05 if self._draw.random() < 0.5 else self._draw.uniform(0.2, self._crowd.pace.away_max)
        elif transport in STREAMS:
            seconds = self._retry_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._crowd.quitting.wait()

    async def _visit(self, transport: Transport) -> bool:
        """Follow over one transport until something ends it; whether that was planned."""
        web = self._draw.randrange(len(self._crowd.webs))
        leg = Leg(transport, web, self.cursor, time.time())
        self.follow.legs.append(leg)
        seconds = float("inf") if self._steady else self._draw.expovariate(1 / self._crowd.pace.visit)
        match transport:
            case "sse" | "sse_after":
                return await self._stream(leg, seconds)
            case "websocket":
                return await self._socket(leg, seconds)
            case _:
                return await self._poll(leg, time.monotonic() + seconds)

    def _saw(self, head: _Head, cursor: int = 0) -> None:
        self._crowd.events += 1
        follow = self.follow
        number = len(follow.legs) - 1
        seen = Seen(
            head.task_id, head.version, head.status_version, head.status, head.attempt, number, time.time(), cursor
        )
        follow.seen.append(seen)
        if follow.task is None:
            self.cursor = max(self.cursor, cursor)
            follow.left = self._full = len(follow.seen) >= SEEN_MAX
            return
        self.cursor = max(self.cursor, head.version)
        self.ended = self.ended or seen.is_terminal
        if len(follow.seen) >= SEEN_MAX:
            self._full = True
            self._problem(f"{SEEN_MAX} changes of one task, and no end")

    def _problem(self, what: str) -> None:
        if len(self.follow.problems) < PROBLEMS_MAX:
            self.follow.problems.append((len(self.follow.legs) - 1, what))

    def _refused(self, status: int, what: str = "") -> None:
        if status not in PASSING:
            self._problem(f"HTTP {status} {what}".strip())

    def _malformed(self, client: Streaming | Socket, error: Exception) -> None:
        self._problem(f"what is none of the protocol: {type(error).__name__}")
        client.abort()

    async def _attend(
        self, client: Streaming | Socket, leg: Leg, seconds: float, ping: Callable[[], None] | None
    ) -> bool:
        """Stay connected for so long at most, at the end of the run to the end; whether it was planned to go."""
        try:
            await connect(client, self._crowd.webs[leg.web])
        except (OSError, TimeoutError):
            return False
        self._crowd.live[client] = (self.follow, leg)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        try:
            while not client.done.done() and not self._crowd.quitting.is_set() and not self._full:
                left = until - loop.time()
                if left <= 0 and not self._crowd.ending:
                    return True
                await asyncio.wait((client.done,), timeout=min(left, PING_SECONDS) if left > 0 else PING_SECONDS)
                if ping is not None and not client.done.done():
                    ping()
            return False
        finally:
            client.abort()
            self._crowd.live.pop(client, None)
            if isinstance(client, Streaming) and leg.transport in STREAMS:
                leg.lasted_seconds = loop.time() - client.asked
                leg.begun_seconds = client.begun - client.asked if client.begun else None

    # Server-sent events, as a browser's EventSource takes them.

    async def _stream(self, leg: Leg, seconds: float) -> bool:
        task = self.follow.task
        cursor = f"s{leg.cursor}" if task is None else str(leg.cursor)
        query = {} if task is None else {"taskId": task}
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if leg.cursor and leg.transport == "sse":
            headers["Last-Event-ID"] = cursor
        elif leg.cursor:
            query["after"] = cursor
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        rest = b""

        def body(data: bytes) -> None:
            nonlocal rest
            if client.status != 200:
                return
            *events, rest = (rest + data).split(b"\n\n")
            try:
                if len(rest) > EVENT_BYTES_MAX:
                    raise ValueError("an event beyond all bounds")
                for event in events:
                    self._event(client, leg, parse_event(event))
            except MALFORMED as error:
                self._malformed(client, error)

        client = Streaming(self._request(f"{EVENTS}?{asked}" if asked else EVENTS, leg.web, headers), body)
        planned = await self._attend(client, leg, seconds, None)
        self._refused(client.status)
        return planned

    def _event(self, client: Streaming, leg: Leg, event: Event) -> None:
        leg.heartbeats += event.is_comment
        if event.retry_ms is not None:
            self._retry_seconds = min(5.0, event.retry_ms / 1000)
        if event.name == "sync":
            leg.recovered = bool(msgspec.json.decode(event.data)["recovered"])
            if self.follow.task is None and event.id:
                self.cursor = max(self.cursor, _number(event.id))
                if not leg.cursor:
                    self.follow.joined = self.cursor  # there was nothing to begin with
        elif event.name in ("status", "progress"):
            before = self.ended
            self._saw(_decode_head(event.data), _number(event.id) if self.follow.task is None else 0)
            if self.ended and not before:
                asyncio.get_running_loop().call_later(UNENDED_SECONDS, _leave_unended, client, leg)
        elif event.name == "refused":
            self._refused(int(msgspec.json.decode(event.data).get("status", 0)), "refused in a stream")

    # WebSocket

    async def _socket(self, leg: Leg, seconds: float) -> bool:
        task = self.follow.task

        def opened() -> None:
            if task is None:
                after = {"after": f"s{leg.cursor}"} if leg.cursor else {}
                client.send(msgspec.json.encode({"type": "subscribe", "all": True, **after}))
            else:
                asked = {"type": "subscribe", "taskIds": [task], "after": {task: leg.cursor}}
                client.send(msgspec.json.encode(asked))

        def text(message: bytes) -> None:
            try:
                self._text(client, leg, _decode_told(message))
            except MALFORMED as error:
                self._malformed(client, error)

        client = Socket(self._crowd.webs[leg.web], SOCKET, opened, text)
        planned = await self._attend(client, leg, seconds, lambda: client.send(b'{"type":"ping"}'))
        if client.status != 101:
            self._refused(client.status, "to a WebSocket")
            if client.status in (200, 204, 304):
                self._problem(f"HTTP {client.status} where a WebSocket should open")
        return planned

    def _text(self, client: Socket, leg: Leg, told: _Told) -> None:
        if told.type in ("status", "progress") and told.task is not None:
            before = self.ended
            self._saw(told.task, _number(told.cursor) if self.follow.task is None else 0)
            if self.ended and not before:
                asyncio.get_running_loop().call_later(AFTER_SECONDS, client.abort)
        elif told.type == "subscribed" and told.sync is not None:
            leg.recovered = bool(told.sync["recovered"])
        elif told.type == "refused":
            problem = told.problem or {}
            self._refused(int(str(problem.get("status", 0))), "refused over a WebSocket")
            client.abort()

    # Asking

    async def _poll(self, leg: Leg, until: float) -> bool:
        task = self.follow.task
        wait = f"&wait={WAIT_SECONDS}&after=" if leg.transport == "longpoll" else ""
        while not self._over():
            if time.monotonic() > until:
                return True
            after = f"{wait}{self.cursor}" if wait else ""
            headers = {"If-None-Match": f'W/"{self.cursor}"', "Connection": "close"}
            request = self._request(f"{STATUS}?taskId={task}{after}", leg.web, headers)
            client = Whole(request)
            await self._attend(client, leg, WAIT_SECONDS + 5, None)
            self._refused(client.status)
            if client.status == 304:
                leg.unchanged += 1
            elif client.status == 200 and client.whole:
                try:
                    self._saw(_decode_head(client.body))
                except MALFORMED as error:
                    self._malformed(client, error)
                    return False
            else:
                return False
            if not wait:
                await self._pause("poll", planned=False)
                await asyncio.sleep(self._draw.uniform(0, POLL_SECONDS))
        return False

    def _request(self, target: str, web: int, headers: dict[str, str]) -> bytes:
        return self._crowd.webs[web].request("GET", target, headers)


def _leave_unended(client: Streaming, leg: Leg) -> None:
    if not client.done.done():
        leg.unended = True
        client.abort()


def _number(cursor: str) -> int:
    """The number in an opaque cursor: it is ours to make, so it may be read here."""
    return int(cursor.removeprefix("s") or 0)
