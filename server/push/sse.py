"""The stream of server-sent events over HTTP, through sse-starlette: works under any ASGI server.

Everything that decides lies in follow.py; here a follower's changes become frames. A follower is claimed before
the response begins and released by the response itself, since a generator that never started never cleans up.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable

import structlog
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.auth import caller_of
from server.db import UNAVAILABLE
from server.errors import InvalidCursor, InvalidParameter, TaskNotFound, Unavailable
from server.metrics import Metrics
from server.push import wire
from server.push.follow import Follower, Following
from server.tasks import snapshot

log = structlog.get_logger()

HEARTBEAT_SECONDS = 15
# A client that takes no byte for this long is cut off, and resumes from its cursor.
SEND_SECONDS_MAX = 30.0
RETRY_MS = 1_000
RETRY_JITTER_MS = 1_000
TASKS_A_STREAM_MAX = 100
HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}

# The library's own way is to cancel generators up to half a second after the signal, without a goodbye.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # the library has no annotation there


class EventStreams:
    """GET /api/generate/events"""

    def __init__(self, following: Following, metrics: Metrics) -> None:
        self._following = following
        self._metrics = metrics

    async def answer(self, request: Request) -> Response:
        """One task, several, or all of the caller's; from `Last-Event-ID`, else `after`, else from now."""
        wake = asyncio.Event()
        try:
            follower, many = await self._join(request, wake)
        except UNAVAILABLE as error:
            log.warning("join_unavailable", reason=type(error).__name__)
            return _refused(Unavailable())
        if follower is None:
            raise TaskNotFound
        if follower.over:
            follower.close()
            return Response(status_code=204, headers=HEADERS)
        self._metrics.sse.joined[follower.sync.mode].inc()
        return _Stream(follower, many, wake, self._metrics)

    async def _join(self, request: Request, wake: asyncio.Event) -> tuple[Follower | None, bool]:
        caller = caller_of(request)
        task_ids = _task_ids(request.query_params)
        if len(task_ids) == 1:
            structlog.contextvars.bind_contextvars(task_id=task_ids[0])
            after = _cursor(request, 0, wire.parse_version)
            return await self._following.task(caller, task_ids[0], after, wake.set), False
        position = _cursor(request, 0, wire.parse_owner_cursor)
        only = frozenset(task_ids) if task_ids else None
        return await self._following.all(caller, position or None, wake.set, only), True


def _task_ids(query: QueryParams) -> list[str]:
    unknown = set(query) - {"taskId", "after"}
    if unknown:
        raise InvalidParameter(f"{min(unknown)!r} is not a parameter of this route")
    task_ids = list(dict.fromkeys(query.getlist("taskId")))
    if len(task_ids) > TASKS_A_STREAM_MAX:
        raise InvalidParameter(f"one stream follows {TASKS_A_STREAM_MAX} named tasks at most")
    if not all(snapshot.TASK_ID.fullmatch(task_id) for task_id in task_ids):
        raise TaskNotFound
    return task_ids


def _cursor(request: Request, default: int, parse: Callable[[str], int]) -> int:
    """Last-Event-ID beats `after`, and where it is not one of ours the present is sent: it cannot be mended."""
    last = request.headers.get("last-event-id")
    if last is not None:
        try:
            return parse(last)
        except wire.BadCursor:
            return default
    after = request.query_params.get("after")
    if after is None:
        return default
    try:
        return parse(after)
    except wire.BadCursor as error:
        raise InvalidCursor(str(error)) from error


def _refused(problem: Unavailable) -> Response:
    retry_ms = 2_000 + random.randint(0, 3_000)  # noqa: S311  (spreads reconnects)
    return Response(
        wire.sse_retry(retry_ms) + wire.sse_refused(problem), media_type="text/event-stream", headers=HEADERS
    )


class _Stream(EventSourceResponse):
    """The response of one follower."""

    def __init__(self, follower: Follower, many: bool, wake: asyncio.Event, metrics: Metrics) -> None:
        super().__init__(
            self._frames(),
            headers=HEADERS,
            ping=HEARTBEAT_SECONDS,
            ping_message_factory=lambda: wire.HEARTBEAT,  # type: ignore[arg-type,return-value]  # bytes go out as they are
            sep="\n",
            send_timeout=SEND_SECONDS_MAX,
        )
        self._follower = follower
        self._many = many
        self._wake = wake
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.sse.open.inc()
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("slow_client_cut_off", transport="sse")
        finally:
            self._metrics.sse.open.dec()
            self._follower.close()

    async def _frames(self) -> AsyncIterator[bytes]:
        follower = self._follower
        begin = wire.sse_retry(RETRY_MS + random.randint(0, RETRY_JITTER_MS))  # noqa: S311  (spreads reconnects)
        first, follower.first = follower.first, []  # not to be kept for as long as the stream lasts
        # A cursor must not pass what was not delivered: of a snapshot of many tasks only the last one bears it.
        empty_id = str(follower.sync.to) if self._many and not first and follower.sync.mode != "replay" else None
        yield begin + wire.sse_sync(follower.sync, empty_id)
        for number, change in enumerate(first, 1):
            yield self._frame(change, str(follower.sync.to) if number == len(first) else None)
        ended = bool(first) and self._ended(first[-1].is_terminal)
        first = []
        if ended:
            return
        while not follower.closing:
            self._wake.clear()
            for position, _, change in await follower.ready():
                if position > follower.joined_at:
                    self._metrics.send_seconds.observe(max(0.0, time.time() - change.at))
                yield self._frame(change, wire.owner_cursor(position))
                if not self._many and change.is_terminal:
                    return
            for task_id in follower.deleted():
                if not self._many:
                    yield wire.sse_refused(TaskNotFound())  # and so is the browser's next request
                    return
                yield wire.sse_deleted(task_id)
            if self._ended(False):
                return
            await self._wake.wait()
        # The more streams there are, the longer the time over which they come back.
        spread_ms = max(RETRY_JITTER_MS, follower.company)
        yield wire.sse_retry(500 + random.randint(0, spread_ms)) + wire.sse_bye("restarting")  # noqa: S311

    def _ended(self, terminal: bool) -> bool:
        return self._follower.finished if self._many else terminal

    def _frame(self, change: snapshot.TaskChange, cursor: str | None) -> bytes:
        self._metrics.sse.sent.inc()
        return wire.sse_change(change, cursor if self._many else str(change.version))
