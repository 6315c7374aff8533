"""Redis pub/sub: hints that something changed, with the change itself; never the truth (that is Postgres).

One connection a process listens, SUBSCRIBE by need, never PSUBSCRIBE; another publishes, from a bounded queue,
so that Redis can neither hold up a commit nor fill the memory. The listener pings every second and starts over
when no pong comes in three: a half-open connection is not noticed otherwise. What is lost meanwhile the tick
finds in Postgres.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from server.metrics import Metrics
from server.push import hub
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange

Deliver: TypeAlias = Callable[[str, list[hub.Item]], None]
log = structlog.get_logger()

PING_SECONDS = 1.0
PONG_SECONDS_MAX = 3.0
CONNECT_SECONDS_MAX = 2.0
PUBLISH_SECONDS_MAX = 1.0
RECONNECT_SECONDS_MAX = 2.0
QUEUE_MAX = 10_000
PIPELINE_MAX = 500
UNAVAILABLE = (redis.exceptions.RedisError, OSError, TimeoutError)


class RedisBus:
    """`deliver(topic, items)` is called for every message; `reconnected` after every new connection."""

    def __init__(
        self, url: str, prefix: str, deliver: Deliver, reconnected: Callable[[], None], metrics: Metrics
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._deliver = deliver
        self._reconnected = reconnected
        self._metrics = metrics
        self._wanted: set[str] = set()
        self._requested: set[str] = set()
        self._confirmed: set[str] = set()
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._change = asyncio.Event()
        self._queue: deque[TaskChange] = deque(maxlen=QUEUE_MAX)
        self._queued = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.connected = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._send())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Subscribing: the hub says what is wanted, the listening task brings it about.

    def subscribe(self, topic: str) -> None:
        self._wanted.add(topic)
        self._change.set()

    def unsubscribe(self, topic: str) -> None:
        self._wanted.discard(topic)
        self._change.set()

    async def subscribed(self, topic: str, seconds: float) -> None:
        """Return when Redis has confirmed the topic, or after `seconds`: a follower goes on either way."""
        if topic in self._confirmed or not self.connected:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(topic, set()).add(future)
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            self._metrics.bus_confirmations_late.inc()
        finally:
            waiting = self._waiting.get(topic, set())
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(topic, None)

    # Listening

    async def _listen(self) -> None:
        attempt = 0
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._listen_once()
            except UNAVAILABLE as error:
                if self.connected:
                    log.warning("redis_lost", reason=type(error).__name__)
            self.connected = False
            self._metrics.bus_connected.set(0)
            attempt = 0 if asyncio.get_running_loop().time() - started > PONG_SECONDS_MAX else attempt + 1
            pause = min(RECONNECT_SECONDS_MAX, 0.05 * 2**attempt)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  (spreads reconnects)

    async def _listen_once(self) -> None:
        client = self._client(socket_timeout=None)
        pubsub = client.pubsub()
        self._requested.clear()
        self._confirmed.clear()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await pubsub.connect()  # type: ignore[no-untyped-call]  # redis has no annotation there
                await pubsub.ping()
            heard = loop.time()
            writer = asyncio.create_task(self._ask(pubsub))
            try:
                while True:
                    if writer.done():
                        writer.result()
                    message = await pubsub.get_message(timeout=PING_SECONDS)
                    if message is not None:
                        heard = loop.time()
                        self._heard(message)
                    elif loop.time() - heard > PONG_SECONDS_MAX:
                        raise TimeoutError("no pong")
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
        finally:
            with contextlib.suppress(*UNAVAILABLE):
                await pubsub.aclose()  # type: ignore[no-untyped-call]
                await client.aclose()

    async def _ask(self, pubsub: Any) -> None:
        """Keep what is asked of Redis the same as what is wanted; ping in between."""
        while True:
            self._change.clear()
            new, old = self._wanted - self._requested, self._requested - self._wanted
            if new:
                self._requested |= new
                await pubsub.subscribe(*(self._prefix + topic for topic in new))
            if old:
                self._requested -= old
                self._confirmed -= old
                await pubsub.unsubscribe([self._prefix + topic for topic in old])
            try:
                await asyncio.wait_for(self._change.wait(), PING_SECONDS)
            except TimeoutError:
                await pubsub.ping()

    def _heard(self, message: dict[str, Any]) -> None:
        if message["type"] == "message":
            self._message(message["channel"].decode()[len(self._prefix) :], message["data"])
        elif message["type"] == "subscribe":
            topic = message["channel"].decode()[len(self._prefix) :]
            if topic in self._wanted:
                self._confirmed.add(topic)
            for future in self._waiting.pop(topic, ()):
                if not future.done():
                    future.set_result(None)
        elif message["type"] == "pong" and not self.connected:
            self.connected = True
            self._metrics.bus_connected.set(1)
            log.info("redis_connected")
            self._reconnected()

    def _message(self, topic: str, data: bytes) -> None:
        self._metrics.bus_received.inc()
        try:
            item = decode(topic, data)
        except ValueError as error:
            log.warning("bus_message_refused", topic=topic, reason=str(error))
            return
        self._deliver(topic, [item])

    # Publishing

    def publish(self, change: TaskChange) -> None:
        """Send to both channels soon; never blocks. When the queue is full the oldest hint goes."""
        if len(self._queue) == QUEUE_MAX:
            self._metrics.bus_dropped.inc()
        self._queue.append(change)
        self._queued.set()

    async def _send(self) -> None:
        client = self._client(socket_timeout=PUBLISH_SECONDS_MAX)
        failing = False
        while True:
            await self._queued.wait()
            batch = [self._queue.popleft() for _ in range(min(PIPELINE_MAX, len(self._queue)))]
            if not self._queue:
                self._queued.clear()
            try:
                pipeline = client.pipeline(transaction=False)
                for change in batch:
                    for topic, data in encode(change):
                        pipeline.publish(self._prefix + topic, data)
                async with asyncio.timeout(PUBLISH_SECONDS_MAX):
                    await pipeline.execute()
                self._metrics.bus_published.inc(len(batch))
                failing = False
            except UNAVAILABLE as error:
                self._metrics.bus_dropped.inc(len(batch))
                if not failing:
                    log.warning("publish_failed", reason=type(error).__name__)
                failing = True
                await client.connection_pool.disconnect()

    def _client(self, *, socket_timeout: float | None) -> "redis.asyncio.Redis":
        return redis.asyncio.Redis.from_url(
            self._url,
            socket_connect_timeout=CONNECT_SECONDS_MAX,
            socket_timeout=socket_timeout,
            retry=Retry(NoBackoff(), 0),  # starting over is done here, where the tick is told of it
        )


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
