"""Publishes changes to Redis, from a bounded queue: Redis can neither hold up a commit nor fill the memory.

What cannot be published is counted and dropped; every follower learns of it from its tick.
"""

import asyncio
from collections import deque

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from server.metrics import Metrics
from server.push import hub
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange

log = structlog.get_logger()

CONNECT_SECONDS_MAX = 2.0
PUBLISH_SECONDS_MAX = 1.0
QUEUE_MAX = 10_000
PIPELINE_MAX = 500
UNAVAILABLE = (redis.exceptions.RedisError, OSError, TimeoutError)


def connect(url: str, *, socket_timeout: float | None) -> "redis.asyncio.Redis":
    """A client for any URL that redis-py takes; it never retries by itself, its user starts over."""
    return redis.asyncio.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS_MAX,
        socket_timeout=socket_timeout,
        retry=Retry(NoBackoff(), 0),
    )


class Publisher:
    """`publish(change)` returns at once; `run()` does the sending, until cancelled."""

    def __init__(self, url: str, prefix: str, metrics: Metrics) -> None:
        self._url = url
        self._prefix = prefix
        self._metrics = metrics
        self._queue: deque[TaskChange] = deque(maxlen=QUEUE_MAX)
        self._queued = asyncio.Event()

    def publish(self, change: TaskChange) -> None:
        """Send to both channels soon. When the queue is full the oldest hint goes."""
        if len(self._queue) == QUEUE_MAX:
            self._metrics.bus_dropped.inc()
        self._queue.append(change)
        self._queued.set()

    async def run(self) -> None:
        client = connect(self._url, socket_timeout=PUBLISH_SECONDS_MAX)
        failing = False
        try:
            while True:
                await self._queued.wait()
                batch = [self._queue.popleft() for _ in range(min(PIPELINE_MAX, len(self._queue)))]
                if not self._queue:
                    self._queued.clear()
                try:
                    await self._send(client, batch)
                    self._metrics.bus_published.inc(len(batch))
                    failing = False
                except UNAVAILABLE as error:
                    self._metrics.bus_dropped.inc(len(batch))
                    if not failing:
                        log.warning("publish_failed", reason=type(error).__name__)
                    failing = True
                    await client.connection_pool.disconnect()
        finally:
            await client.aclose()

    async def _send(self, client: "redis.asyncio.Redis", batch: list[TaskChange]) -> None:
        pipeline = client.pipeline(transaction=False)
        for change in batch:
            for topic, data in encode(change):
                pipeline.publish(self._prefix + topic, data)
        async with asyncio.timeout(PUBLISH_SECONDS_MAX):
            await pipeline.execute()


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
        if hub.task_topic(change.task_id) != topic:
            raise ValueError("a snapshot of another task")
        return hub.task_item(change)
    seq, _, body = data.partition(b" ")
    if not seq.isdigit():
        raise ValueError("no number before the snapshot")
    return hub.user_item(snapshot.from_body(body, int(seq)))
