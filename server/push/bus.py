"""The bus. Redis pub/sub: hints that something changed, with the change itself; never the truth (that is Postgres).

One connection a process listens, SUBSCRIBE by need, never PSUBSCRIBE (publisher.py is the other direction). It
pings every second and starts over when no pong comes in three: a half-open connection is not noticed otherwise.
What is lost meanwhile the tick finds in Postgres.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import structlog

from server.metrics import Metrics
from server.push import hub
from server.push.publisher import CONNECT_SECONDS_MAX, UNAVAILABLE, connect, decode

Deliver: TypeAlias = Callable[[str, list[hub.Item]], None]
log = structlog.get_logger()

PING_SECONDS = 1.0
PONG_SECONDS_MAX = 3.0
RECONNECT_SECONDS_MAX = 2.0


class Bus(Protocol):
    """What the hub's topics are announced to; `connected` says whether hints come in at all."""

    connected: bool

    def subscribe(self, topic: str) -> None: ...

    def unsubscribe(self, topic: str) -> None: ...

    async def subscribed(self, topic: str, seconds: float) -> None: ...

    async def started(self, seconds: float) -> None: ...

    async def run(self, deliver: Deliver, connected: Callable[[], None]) -> None: ...


class NoticeBus:
    """Without Redis: every process hears every notice in Postgres, and the tick looks at the tasks it names.

    Nothing is subscribed to, so nothing has to be waited for.
    """

    connected = True

    def subscribe(self, topic: str) -> None:
        """Heard already."""

    def unsubscribe(self, topic: str) -> None:
        """Heard all the same; the tick asks the hub who wants it."""

    async def subscribed(self, topic: str, seconds: float) -> None:
        """At once."""

    async def started(self, seconds: float) -> None:
        """At once: the connection that listens for the tick is started with the process."""

    async def run(self, deliver: Deliver, connected: Callable[[], None]) -> None:
        """Until cancelled: what is heard goes to the tick."""
        await asyncio.Event().wait()


class RedisBus:
    """Say what is wanted with subscribe() and unsubscribe(); `run()` does the rest."""

    def __init__(self, url: str, prefix: str, metrics: Metrics) -> None:
        self._url = url
        self._prefix = prefix
        self._metrics = metrics
        self._wanted: set[str] = set()
        self._requested: set[str] = set()
        self._confirmed: set[str] = set()
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._change = asyncio.Event()
        self.connected = False
        self._ever = asyncio.Event()

    async def started(self, seconds: float) -> None:
        """Return when Redis has answered for the first time, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ever.wait()

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
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            self._metrics.bus_confirmations_late.inc()
        finally:
            waiting = self._waiting.get(topic, set())
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(topic, None)

    # Listening

    async def run(self, deliver: Deliver, connected: Callable[[], None]) -> None:
        """Listen until cancelled, starting over as often as it takes.

        `deliver(topic, items)` is called for every message, `connected` after every new connection.
        """
        attempt = 0
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._listen_once(deliver, connected)
            except UNAVAILABLE as error:
                if self.connected or attempt == 0:
                    log.warning("redis_away", reason=type(error).__name__)
            self.connected = False
            self._metrics.bus_connected.set(0)
            attempt = 0 if asyncio.get_running_loop().time() - started > PONG_SECONDS_MAX else attempt + 1
            pause = min(RECONNECT_SECONDS_MAX, 0.05 * 2**attempt)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  (spreads reconnects)

    async def _listen_once(self, deliver: Deliver, connected: Callable[[], None]) -> None:
        client = connect(self._url, socket_timeout=None)
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
                        self._heard(message, deliver, connected)
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
                async with asyncio.timeout(PING_SECONDS):  # wait_for() may swallow a cancellation (Python 3.11)
                    await self._change.wait()
            except TimeoutError:
                await pubsub.ping()

    def _heard(self, message: dict[str, Any], deliver: Deliver, connected: Callable[[], None]) -> None:
        if message["type"] == "message":
            self._message(message["channel"].decode()[len(self._prefix) :], message["data"], deliver)
        elif message["type"] == "subscribe":
            topic = message["channel"].decode()[len(self._prefix) :]
            if topic in self._wanted:
                self._confirmed.add(topic)
            for future in self._waiting.pop(topic, ()):
                if not future.done():
                    future.set_result(None)
        elif message["type"] == "pong" and not self.connected:
            self.connected = True
            self._ever.set()
            self._metrics.bus_connected.set(1)
            log.info("redis_connected")
            connected()

    def _message(self, topic: str, data: bytes, deliver: Deliver) -> None:
        self._metrics.bus_received.inc()
        try:
            item = decode(topic, data)
        except ValueError as error:
            log.warning("bus_message_refused", **hub.subject(topic), reason=str(error))
            return
        deliver(topic, [item])
