"""Publishes changes, from a bounded queue: the bus can neither hold up a commit nor fill the memory.

What cannot be published is counted and dropped; every follower learns of it from its tick. Two ways out: to Redis,
and where there is none a notice in Postgres.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import structlog

from server import failpoints
from server.db import DATABASE_ERRORS, Pool
from server.metrics import ProcessMetrics
from server.push import hub
from server.push.redis_link import UNAVAILABLE, Link, Reply, open_link, pack
from server.settings import Settings
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange

log = structlog.get_logger()

PUBLISH_SECONDS_MAX = 1.0
QUEUE_MAX = 10_000
PIPELINE_MAX = 500


class Outlet(Protocol):
    """Where changes go. `send` raises UNAVAILABLE or DATABASE_ERRORS, and is then used again later."""

    async def send(self, batch: Sequence[TaskChange]) -> None: ...

    async def close(self) -> None: ...


def outlet(settings: Settings, pool: Pool) -> Outlet:
    """The one that the settings ask for."""
    if settings.redis_url is None:
        return Notices(pool)
    return Channels(settings.redis_url, settings.redis_prefix)


class Publisher:
    """`publish(change)` returns at once; `run()` does the sending, until cancelled."""

    def __init__(self, out: Outlet, metrics: ProcessMetrics) -> None:
        self._out = out
        self._metrics = metrics
        self._queue: deque[TaskChange] = deque(maxlen=QUEUE_MAX)
        self._queued = asyncio.Event()

    def publish(self, change: TaskChange) -> None:
        """Send it soon. When the queue is full the oldest hint goes."""
        if len(self._queue) == QUEUE_MAX:
            self._metrics.bus_dropped.inc()
        self._queue.append(change)
        self._queued.set()

    async def run(self) -> None:
        failing = False
        try:
            while True:
                await self._queued.wait()
                batch = [self._queue.popleft() for _ in range(min(PIPELINE_MAX, len(self._queue)))]
                if not self._queue:
                    self._queued.clear()
                try:
                    async with asyncio.timeout(PUBLISH_SECONDS_MAX):
                        await self._out.send(batch)
                    failpoints.reached("bus.published")
                    self._metrics.bus_published.inc(len(batch))
                    failing = False
                except (*UNAVAILABLE, *DATABASE_ERRORS) as error:
                    self._metrics.bus_dropped.inc(len(batch))
                    if not failing:
                        log.warning("publish_failed", reason=type(error).__name__)
                    failing = True
        finally:
            await self._out.close()


class Channels:
    """Two messages a change, on the task's channel and on its user's; all of a batch in one write."""

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self._link: Link | None = None
        self._unanswered = 0
        self._all_answered: asyncio.Future[None] | None = None

    async def send(self, batch: Sequence[TaskChange]) -> None:
        try:
            link = self._link
            if link is None or link.lost.done():
                self._link = link = await open_link(self._url, self._answered)
                link.lost.add_done_callback(self._lost)
            commands = [("PUBLISH", self._prefix + topic, data) for change in batch for topic, data in encode(change)]
            self._unanswered = len(commands)
            self._all_answered = asyncio.get_running_loop().create_future()
            link.write(pack(commands))
            await self._all_answered
        except BaseException:
            await self.close()  # an answer may still be under way on it
            raise

    def _answered(self, replies: list[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
            self._unanswered -= isinstance(reply, int)  # to how many each went; else it is news, and not for us
        if self._unanswered == 0 and self._all_answered is not None and not self._all_answered.done():
            self._all_answered.set_result(None)

    def _lost(self, lost: "asyncio.Future[BaseException]") -> None:
        ours = self._link is not None and self._link.lost is lost
        if ours and self._all_answered is not None and not self._all_answered.done():
            self._all_answered.set_exception(lost.result())

    async def close(self) -> None:
        if self._link is not None:
            self._link.lose(ConnectionError("given up"))
            self._link = None


class Notices:
    """One notice a task on one channel for all, "task_id version": whoever follows the task reads the row.

    A channel for each task would not do: their names end at 63 bytes, and every LISTEN costs a round trip.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def send(self, batch: Sequence[TaskChange]) -> None:
        newest = {change.task_id: change.version for change in batch}
        await self._pool.execute(
            """select pg_notify('taskbeam', task_id || ' ' || version)
                 from unnest($1::text[], $2::int[]) n (task_id, version)""",
            list(newest),
            list(newest.values()),
        )

    async def close(self) -> None:
        """The pool is its owner's to close."""


def encode(change: TaskChange) -> list[tuple[str, bytes]]:
    """The two messages of a change. On the task's channel the snapshot; on the user's, its number before it."""
    return [
        (hub.task_topic(change.task_id), change.body),
        (hub.user_topic(change.user_id), b"%d %s" % (change.seq, change.body)),
    ]


def decode(topic: str, data: bytes) -> hub.Item:
    """The reverse of encode() for one message. Raises ValueError for anything else."""
    if topic.startswith("task:"):
        change = snapshot.from_body(data)
        if change.task_id != topic[5:]:
            raise ValueError("a snapshot of another task")
        return hub.task_item(change)
    seq, _, body = data.partition(b" ")
    if not seq.isdigit():
        raise ValueError("no number before the snapshot")
    return hub.user_item(snapshot.from_body(body, int(seq)))
