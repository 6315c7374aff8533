"""Asking instead of being told: the snapshot over plain HTTP, with ETag, and held back until there is news.

The fallback where neither EventSource nor WebSocket gets through, and what curl and old clients use. A long
poll follows the task like every other transport, so it costs no query while nothing happens.
"""

import asyncio
import datetime as dt
import math
import re
import time

import structlog
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Caller, Identify
from server.errors import InvalidCursor, InvalidParameter, TaskNotFound
from server.metrics import Metrics
from server.push import wire
from server.push.follow import Following
from server.push.rights import Rights
from server.tasks import snapshot
from server.tasks.pace import Pace
from server.tasks.reading import TaskReader
from server.tasks.snapshot import TaskChange

WAIT_SECONDS_MAX = 60


class Poll:
    """GET /api/generate/status?taskId=&wait=&after="""

    def __init__(
        self,
        identify: Identify,
        following: Following,
        rights: Rights,
        reader: TaskReader,
        pace: Pace,
        metrics: Metrics,
    ) -> None:
        self._identify = identify
        self._following = following
        self._rights = rights
        self._reader = reader
        self._pace = pace
        self._metrics = metrics

    async def answer(self, request: Request) -> Response:
        """The snapshot now; with `wait`, as soon as its version is above `after`, or when the time is over."""
        caller = await self._identify(request)
        query = request.query_params
        task_id = query.get("taskId")
        if task_id is None:
            raise InvalidParameter("taskId is missing: /api/generate/status?taskId=…")
        if not snapshot.TASK_ID.fullmatch(task_id):
            raise TaskNotFound
        structlog.contextvars.bind_contextvars(task_id=task_id)
        wait, after = _wait(query.get("wait")), _after(query.get("after"))
        if wait:
            change = await self._news(request, caller, task_id, after, wait)
            self._rights.still(caller)
        else:
            change = await self._newest(caller, task_id)
        if change is None:
            raise TaskNotFound
        return self._response(request, change)

    async def _news(self, request: Request, caller: Caller, task_id: str, after: int, wait: int) -> TaskChange | None:
        await self._rights.require(caller)
        wake = asyncio.Event()
        follower = await self._following.task(caller, task_id, after, wake.set)
        if follower is None:
            return None
        self._metrics.poll.joined[follower.sync.mode].inc()
        self._metrics.poll.open.inc()
        follower.right = self._rights.enter(caller, (follower,), wake.set)
        gone = asyncio.create_task(_disconnected(request))
        gone.add_done_callback(lambda _: wake.set())
        try:
            if follower.first:
                return follower.first[-1]
            async with asyncio.timeout(wait):
                while not follower.closing and not follower.over and not gone.done():
                    wake.clear()
                    if follower.ended is not None:
                        raise follower.ended
                    items = await follower.ready()
                    if items:
                        change = items[-1].change
                        self._metrics.send_seconds.observe(max(0.0, time.time() - change.at))
                        return change
                    if follower.deleted():
                        return None
                    await wake.wait()
        except TimeoutError:
            pass
        finally:
            gone.cancel()
            self._metrics.poll.open.dec()
            follower.close()
        return await self._newest(caller, task_id)

    async def _newest(self, caller: Caller, task_id: str) -> TaskChange | None:
        changes, _ = await self._reader.since(caller.claims, task_id, wire.VERSION_MAX)
        return changes[-1] if changes else None

    def _response(self, request: Request, change: TaskChange) -> Response:
        etag = f'W/"{change.version}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        poll_after_ms = None
        if not change.is_terminal:
            age = dt.datetime.now(dt.UTC) - snapshot.created_at(change.body)
            poll_after_ms = self._pace.poll_after_ms(age.total_seconds())
            headers["Retry-After"] = str(math.ceil(poll_after_ms / 1000))
        self._metrics.poll.sent.inc()
        if _matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        body = snapshot.with_advice(change.body, poll_after_ms=poll_after_ms)
        return Response(body, media_type="application/json", headers=headers)


async def _disconnected(request: Request) -> None:
    """Return when the client has gone: nobody is to be held here for it then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wait(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII):
        raise InvalidParameter(f"wait is a number of seconds, {WAIT_SECONDS_MAX} at most")
    return min(int(text), WAIT_SECONDS_MAX)


def _after(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return wire.parse_version(text)
    except wire.BadCursor as error:
        raise InvalidCursor(str(error)) from error


def _matches(header: str | None, etag: str) -> bool:
    """If-None-Match compares weakly (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in tags or etag.removeprefix("W/") in tags
