"""Clients that follow tasks as browsers do, come back from their cursor after every break, and note what they saw.

One cursor for all transports: a task's version; of all tasks the opaque one. A follower goes away by itself now and
then and resumes over another transport and another web process.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence

import msgspec

from server.chaos.exchange import Streaming, connect
from server.chaos.judge import Defect
from server.chaos.link import Address
from server.chaos.socket_client import Socket
from server.chaos.views import TRANSPORTS, Follow, Leg, Seen, Transport

EVENTS, STATUS, SOCKET = "/api/generate/events", "/api/generate/status", "/api/generate/ws"
WEIGHTS: dict[Transport, float] = {"sse": 5, "websocket": 4, "longpoll": 2, "poll": 1}
# Heartbeats come every 15 seconds; who hears nothing for longer is connected to nobody.
SILENCE_SECONDS_MAX = 20.0
PING_SECONDS = 8.0
WAIT_SECONDS = 10
POLL_SECONDS = 1.5
# A visit without a break lasts about this long, and longer where there are many: so many come a second by themselves.
VISIT_SECONDS_MIN = 5.0
VISITS_A_SECOND = 100
# Who has left comes back at once or after a while.
AWAY_SECONDS_MAX = 3.0
ALL_SECONDS = (20.0, 60.0)
# To one that was accepted: away for now (503), too many (429). All else that is no success is a defect.
PASSING = frozenset({0, 200, 204, 304, 429, 503})


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


class Crowd:
    """What all followers share: where the web processes are, who is connected, where finished follows go."""

    def __init__(self, webs: Sequence[Address], record: Callable[[Follow], None], seed: int, followers: int) -> None:
        self.webs = webs
        self.visit_seconds = max(VISIT_SECONDS_MIN, followers / VISITS_A_SECOND)
        self.record = record
        self.draw = random.Random(seed)  # noqa: S311  (spreads clients)
        self.live: dict[Streaming | Socket, tuple[Follow, Leg]] = {}
        self.events = 0
        self.ending = False  # no new follows, and nobody goes by itself: those under way go on to their end
        self.quitting = asyncio.Event()
        self._numbers = 0

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def cut(self, web: int) -> None:
        """Half of the clients of a web process lose their connection."""
        for client in [client for client, (_, leg) in self.live.items() if leg.web == web and self.draw.random() < 0.5]:
            client.abort()

    def late(self, quiet: float) -> list[Defect]:
        """Who was connected when the last task had ended, at Unix seconds, is so still, and has not seen its end."""
        return [
            Defect("lost", follow.task, "its end in time", "nothing", follow.number, leg.transport, leg.cursor)
            for follow, leg in self.live.values()
            if follow.task is not None and leg.at < quiet and not any(seen.is_terminal for seen in follow.seen)
        ]

    def quit(self) -> None:
        """All are gone as soon as may be; what is owed to them by now stays owed."""
        self.quitting.set()
        for client in list(self.live):
            client.abort()

    async def watch(self) -> None:
        """Until cancelled: end connections on which nothing is heard; a browser's user would reload."""
        while True:
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            for client in [client for client in self.live if now - client.heard > SILENCE_SECONDS_MAX]:
                client.abort()


class Follower:
    """`await run()` until its task has ended, or (all tasks) its time is over; then it is on record."""

    def __init__(self, crowd: Crowd, task: str | None) -> None:
        self._crowd = crowd
        self._draw = crowd.draw
        self.follow = Follow(crowd.number(), task)
        self.cursor = 0
        self._ended = False
        self._retry_seconds = 1.0
        self._until = time.monotonic() + self._draw.uniform(*ALL_SECONDS)

    async def run(self) -> None:
        try:
            transport = self._choose(None)
            while not self._over():
                planned = await self._visit(transport)
                if self._over():
                    break
                if planned or self._draw.random() < 0.3:
                    transport = self._choose(transport)
                await self._pause(transport, planned)
            if self._ended and self._draw.random() < 0.25:
                await self._visit("sse")  # as an EventSource does by itself after the end: it must be told nothing
        finally:
            self._crowd.record(self.follow)

    def _over(self) -> bool:
        if self._ended or self._crowd.quitting.is_set():
            return True
        if self.follow.task is None and time.monotonic() > self._until and not self._crowd.ending and self.cursor:
            self.follow.left = True
            return True
        return False

    def _choose(self, before: Transport | None) -> Transport:
        names = [name for name in TRANSPORTS if name != before]
        if self.follow.task is None:
            names = [name for name in names if name in ("sse", "websocket")]
        return self._draw.choices(names, [WEIGHTS[name] for name in names])[0]

    async def _pause(self, transport: Transport, planned: bool) -> None:
        seconds = self._draw.uniform(0.2, 1.0)
        if planned:
            seconds = 0.05 if self._draw.random() < 0.5 else self._draw.uniform(0.2, AWAY_SECONDS_MAX)
        elif transport == "sse":
            seconds = self._retry_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._crowd.quitting.wait()

    async def _visit(self, transport: Transport) -> bool:
        """Follow over one transport until something ends it; whether that was planned."""
        web = self._draw.randrange(len(self._crowd.webs))
        leg = Leg(transport, web, self.cursor, time.time())
        self.follow.legs.append(leg)
        seconds = self._draw.expovariate(1 / self._crowd.visit_seconds)
        match transport:
            case "sse":
                return await self._stream(leg, seconds)
            case "websocket":
                return await self._socket(leg, seconds)
            case _:
                return await self._poll(leg, time.monotonic() + seconds)

    def _saw(self, head: _Head, cursor: int = 0) -> None:
        self._crowd.events += 1
        number = len(self.follow.legs) - 1
        seen = Seen(
            head.task_id, head.version, head.status_version, head.status, head.attempt, number, time.time(), cursor
        )
        self.follow.seen.append(seen)
        if self.follow.task is None:
            self.cursor = max(self.cursor, cursor)
            return
        self.cursor = max(self.cursor, head.version)
        self._ended = self._ended or seen.is_terminal

    def _refused(self, status: int, what: str = "") -> None:
        if status not in PASSING:
            self.follow.problems.append(f"HTTP {status} {what}".strip())

    async def _attend(
        self, client: Streaming | Socket, leg: Leg, seconds: float, ping: Callable[[], None] | None
    ) -> bool:
        """Stay connected for so long at most, at the end of the run to the end; whether it was planned to go."""
        if not await connect(client, self._crowd.webs[leg.web]):
            return False
        self._crowd.live[client] = (self.follow, leg)
        until = asyncio.get_running_loop().time() + seconds
        try:
            while not client.done.done() and not self._crowd.quitting.is_set():
                left = until - asyncio.get_running_loop().time()
                if left <= 0 and not self._crowd.ending:
                    return True
                await asyncio.wait((client.done,), timeout=min(left, PING_SECONDS) if left > 0 else PING_SECONDS)
                if ping is not None and not client.done.done():
                    ping()
            return False
        finally:
            client.abort()
            self._crowd.live.pop(client, None)

    # Server-sent events, as a browser's EventSource takes them.

    async def _stream(self, leg: Leg, seconds: float) -> bool:
        task = self.follow.task
        cursor = f"s{leg.cursor}" if task is None else str(leg.cursor)
        query = "" if task is None else f"?taskId={task}"
        headers = {"Accept": "text/event-stream"}
        if leg.cursor:
            headers["Last-Event-ID"] = cursor
        rest = b""

        def body(data: bytes) -> None:
            nonlocal rest
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                self._event(leg, event)

        client = Streaming(self._request(f"{EVENTS}{query}", leg.web, headers), body)
        planned = await self._attend(client, leg, seconds, None)
        self._refused(client.status)
        return planned

    def _event(self, leg: Leg, event: bytes) -> None:
        name, data, cursor = "", b"", ""
        for line in event.split(b"\n"):
            field, _, value = line.partition(b": ")
            match field:
                case b"event":
                    name = value.decode()
                case b"data":
                    data = value
                case b"id":
                    cursor = value.decode()
                case b"retry":
                    self._retry_seconds = min(5.0, int(value) / 1000)
        if name == "sync":
            leg.recovered = bool(msgspec.json.decode(data)["recovered"])
            if self.follow.task is None and cursor:
                self.cursor = max(self.cursor, _number(cursor))
        elif name in ("status", "progress"):
            self._saw(_decode_head(data), _number(cursor) if self.follow.task is None else 0)
        elif name == "refused":
            self._refused(int(msgspec.json.decode(data).get("status", 0)), "refused in a stream")

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

        client = Socket(self._crowd.webs[leg.web], SOCKET, opened, lambda text: self._text(client, leg, text))
        planned = await self._attend(client, leg, seconds, lambda: client.send(b'{"type":"ping"}'))
        self._refused(0 if client.status == 101 else client.status)
        return planned

    def _text(self, client: Socket, leg: Leg, text: bytes) -> None:
        told = _decode_told(text)
        if told.type in ("status", "progress") and told.task is not None:
            self._saw(told.task, _number(told.cursor) if self.follow.task is None else 0)
            if self._ended:
                client.abort()
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
            pieces: list[bytes] = []
            after = f"{wait}{self.cursor}" if wait else ""
            headers = {"If-None-Match": f'W/"{self.cursor}"', "Connection": "close"}
            request = self._request(f"{STATUS}?taskId={task}{after}", leg.web, headers)
            client = Streaming(request, pieces.append)
            await self._attend(client, leg, WAIT_SECONDS + 5, None)
            self._refused(client.status)
            if client.status == 200 and client.whole:
                self._saw(_decode_head(b"".join(pieces)))
            elif client.status != 304:
                return False
            if not wait:
                await self._pause("poll", planned=False)
                await asyncio.sleep(self._draw.uniform(0, POLL_SECONDS))
        return False

    def _request(self, target: str, web: int, headers: dict[str, str]) -> bytes:
        address = self._crowd.webs[web]
        assert isinstance(address, tuple)  # noqa: S101  (web processes are reached over TCP)
        lines = [f"GET {target} HTTP/1.1", f"Host: {address[0]}:{address[1]}"]
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def _number(cursor: str) -> int:
    """The number in an opaque cursor: it is ours to make, so it may be read here."""
    return int(cursor.removeprefix("s") or 0)
