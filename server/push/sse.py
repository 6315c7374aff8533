"""The stream of server-sent events: who joins, and what a stream says in which order.

Everything that decides lies in follow.py; here a follower's changes become frames, on one of two ways out. Where our
own protocol holds the connection, it is handed over to stream.py. Under any other ASGI server, and where there is more
between us and the client (HTTP/1.0, TLS), the frames go through sse-starlette.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, MutableSet, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import structlog
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth import Caller, Identify
from server.db import UNAVAILABLE
from server.errors import InvalidCursor, InvalidParameter, TaskNotFound, Unavailable, check_parameters
from server.metrics import Metrics
from server.push import wire
from server.push.follow import Follower, Following
from server.push.rights import Rights
from server.push.stream import HEARTBEAT_SECONDS, SEND_SECONDS_MAX, Stream, Streams
from server.push.turns import Bell
from server.tasks import snapshot
from server.tasks.tickets import Tickets

log = structlog.get_logger()

RETRY_MS = 1_000
RETRY_JITTER_MS = 1_000
# The more streams there are, the longer the time over which they come back: this much for each of them.
RETURN_MS_A_STREAM = 0.3
# The scope's extension (protocols.HandOver) by which a connection can be taken.
HAND_OVER = "taskbeam.hand_over"
TASKS_A_STREAM_MAX = 100
EVENT_STREAM = "text/event-stream"
HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}

STREAM_HEADERS = [
    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"connection", b"close"),  # it ends with the stream
]

# The library's own way is to cancel generators up to half a second after the signal, without a goodbye.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # the library has no annotation there


class EventStreams:
    """GET /api/generate/events"""

    def __init__(
        self,
        identify: Identify,
        tickets: Tickets,
        following: Following,
        rights: Rights,
        streams: Streams,
        metrics: Metrics,
    ) -> None:
        self._identify = identify
        self._tickets = tickets
        self._following = following
        self._rights = rights
        self._streams = streams
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One task, several, or all of the caller's; from `Last-Event-ID`, else `after`, else from now."""
        answer = await self._answer(HTTPConnection(scope))
        await answer(scope, receive, send)

    async def _answer(self, connection: HTTPConnection) -> ASGIApp:
        looks_only = connection.scope["method"] == "HEAD"
        try:
            follower, many = await self._join(connection, looks_only)
        except Unavailable as problem:
            return _refused(problem)
        except UNAVAILABLE as error:
            log.warning("join_unavailable", reason=type(error).__name__)
            return _refused(Unavailable())
        if follower is None:
            raise TaskNotFound
        if follower.over or looks_only:
            follower.close()
            return Response(status_code=204 if follower.over else 200, headers=HEADERS, media_type=EVENT_STREAM)
        try:
            self._rights.still(follower.caller)
        except BaseException:
            follower.close()
            raise
        self._metrics.sse.joined[follower.sync.mode].inc()
        follower.right = self._rights.enter(follower.caller, (follower,), follower.wake)
        return _Joined(follower, Framer(follower, many, self._metrics), self._streams)

    async def _join(self, connection: HTTPConnection, looks_only: bool) -> tuple[Follower | None, bool]:
        query = _Query.of(connection.scope)
        caller, task_ids = await self._asked(connection, query, looks_only)
        await self._rights.require(caller)
        if len(task_ids) == 1:
            structlog.contextvars.bind_contextvars(task_id=task_ids[0])
            after = _cursor(connection.scope, query, wire.parse_version)
            return await self._following.task(caller, task_ids[0], after, _asleep), False
        position = _cursor(connection.scope, query, wire.parse_owner_cursor)
        only = frozenset(task_ids) if task_ids else None
        return await self._following.all(caller, position or None, _asleep, only), True

    async def _asked(
        self, connection: HTTPConnection, query: "_Query", looks_only: bool
    ) -> tuple[Caller, Sequence[str]]:
        """Who asks, and for which tasks (none: all of his). A ticket counts alone; HEAD does not spend it."""
        if query.ticket is None:
            caller = await self._identify(connection)
            return caller, query.named()
        task_ids = query.named()
        show = self._tickets.look if looks_only else self._tickets.spend
        caller = await show(query.ticket, task_ids)
        return caller, task_ids or sorted(caller.task_ids or ())


def _asleep() -> None:
    """Until it is known who is to be woken: whoever that is looks by himself first."""


class _Query(NamedTuple):
    """What a request's query says, `names` being all that it has."""

    task_ids: tuple[str, ...]
    after: str | None
    ticket: str | None
    names: tuple[str, ...]

    @classmethod
    def of(cls, scope: Scope) -> "_Query":
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        last = dict(pairs)
        task_ids = tuple(dict.fromkeys(value for name, value in pairs if name == "taskId"))
        return cls(task_ids, last.get("after"), last.get("ticket"), tuple(last))

    def named(self) -> list[str]:
        """The tasks. Raises InvalidParameter and TaskNotFound."""
        check_parameters(self.names, "taskId", "after", "ticket")
        if len(self.task_ids) > TASKS_A_STREAM_MAX:
            raise InvalidParameter(f"one stream follows {TASKS_A_STREAM_MAX} named tasks at most")
        if not all(map(snapshot.TASK_ID.fullmatch, self.task_ids)):
            raise TaskNotFound
        return list(self.task_ids)


def _cursor(scope: Scope, query: _Query, parse: Callable[[str], int]) -> int:
    """Last-Event-ID beats `after`, and where it is not one of ours the present is sent: it cannot be mended."""
    last = next((value for name, value in scope["headers"] if name == b"last-event-id"), None)
    if last is not None:
        try:
            return parse(last.decode("latin-1"))
        except wire.BadCursor:
            return 0
    if query.after is None:
        return 0
    try:
        return parse(query.after)
    except wire.BadCursor as error:
        raise InvalidCursor(str(error)) from error


def _refused(problem: Unavailable) -> Response:
    retry_ms = 2_000 + random.randint(0, 3_000)  # noqa: S311  (spreads reconnects)
    return Response(wire.sse_retry(retry_ms) + wire.sse_refused(problem), media_type=EVENT_STREAM, headers=HEADERS)


class Framer:
    """What one stream says, as frames; `done` once it has said the last. Pure, but for asking its follower."""

    __slots__ = ("_follower", "_many", "_metrics", "done")

    def __init__(self, follower: Follower, many: bool, metrics: Metrics) -> None:
        self._follower = follower
        self._many = many
        self._metrics = metrics
        self.done = False

    def begin(self) -> list[bytes]:
        """How it joined, and what lies after its cursor."""
        follower = self._follower
        retry = wire.sse_retry(RETRY_MS + random.randint(0, RETRY_JITTER_MS))  # noqa: S311  (spreads reconnects)
        sync, first = follower.sync, follower.begun()
        # A cursor must not pass what was not delivered: of a snapshot of many tasks only the last one bears it.
        empty_id = str(sync.to) if self._many and not first and sync.mode != "replay" else None
        frames = [retry + wire.sse_sync(sync, empty_id)]
        for number, change in enumerate(first, 1):
            many_id = str(sync.to) if number == len(first) else None
            frames.append(wire.sse_change(change, many_id if self._many else str(change.version)))
        self._metrics.sse.sent.value += len(first)
        self.done = follower.finished if self._many else bool(first) and first[-1].is_terminal
        return frames

    def news(self) -> list[bytes]:
        """What there is to say now."""
        if self._follower.ended is not None:
            self.done = True
            return [wire.sse_ended(self._follower.ended)]
        frames = []
        right = self._follower.right
        ends_at = right.take_warning() if right is not None else None
        if ends_at is not None:
            frames.append(wire.sse_ending(ends_at))
        for item in self._follower.take():
            if item.position > self._follower.joined_at:
                self._metrics.send_seconds.observe(max(0.0, time.time() - item.change.at))
            self._metrics.sse.sent.value += 1
            frames.append(item.event)
            if not self._many and item.change.is_terminal:
                self.done = True
                return frames
        for task_id in self._follower.deleted():
            if not self._many:
                self.done = True
                return [*frames, wire.sse_refused(TaskNotFound())]  # and so is the browser's next request
            frames.append(wire.sse_deleted(task_id))
        self.done = self._many and self._follower.finished
        return frames

    def bye(self) -> bytes:
        """The process is going; when to come back."""
        spread_ms = max(RETRY_JITTER_MS, round(RETURN_MS_A_STREAM * self._follower.company))
        return wire.sse_retry(500 + random.randint(0, spread_ms)) + wire.sse_bye("restarting")  # noqa: S311


class _Joined:
    """The answer of one follower, who is released by it: what never started never cleans up."""

    def __init__(self, follower: Follower, framer: Framer, streams: Streams) -> None:
        self._follower = follower
        self._framer = framer
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope.get("extensions", {}).get(HAND_OVER)
        if connection is None or not connection.possible:
            await self._through_the_server(scope, receive, send)
            return
        try:
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            stream = connection.take(self._stream)
        except ConnectionResetError:  # the client has gone meanwhile
            self._follower.close()
            return
        except BaseException:
            self._follower.close()
            raise
        stream.begin()

    def _stream(self, transport: asyncio.Transport, connections: MutableSet[Any]) -> Stream:
        return Stream(transport, connections, self._follower, self._framer, self._streams)

    async def _through_the_server(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = EventSourceResponse(
            self._frames(),
            headers=HEADERS,
            ping=HEARTBEAT_SECONDS,
            ping_message_factory=lambda: wire.HEARTBEAT,  # type: ignore[arg-type,return-value]  # bytes go out as they are
            sep="\n",
            send_timeout=SEND_SECONDS_MAX,
        )
        self._streams.open.inc()
        try:
            await response(scope, receive, send)
        except SendTimeoutError:
            log.info("slow_client_cut_off", transport="sse")
        finally:
            self._streams.open.dec()
            self._follower.close()

    async def _frames(self) -> AsyncIterator[bytes]:
        follower, framer = self._follower, self._framer
        bell = Bell(self._streams.turns, follower.subscription)
        follower.wake_with(bell.wake)
        # Each frame may have to wait for the client to read: whose right ends meanwhile is told no more.
        for frame in framer.begin():
            if follower.ended is None:
                yield frame
        while not framer.done or follower.ended is not None:
            await bell.wait()
            if follower.closing:
                yield framer.bye()
                return
            if not follower.behind or await follower.catch_up():
                ended = follower.ended
                for frame in framer.news():
                    bell.rest()
                    if follower.ended is ended:
                        yield frame
                if ended is not None:
                    return
