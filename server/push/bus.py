"""The bus. Redis pub/sub: hints that something changed, with the change itself; never the truth (that is Postgres).

One connection a process listens, SUBSCRIBE by need, never PSUBSCRIBE (publisher.py is the other direction). It
pings every second and starts over when nothing comes in three: a half-open connection is not noticed otherwise.
What is lost meanwhile the tick finds in Postgres.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Protocol, TypeAlias

import structlog

from server.metrics import Metrics
from server.push import hub
from server.push.confirmations import Confirmations
from server.push.publisher import decode
from server.push.redis_link import UNAVAILABLE, Link, Reply, open_link, pack
from server.push.subscriptions import Subscriptions

Deliver: TypeAlias = Callable[[str, hub.Item], None]
log = structlog.get_logger()

PING_SECONDS = 1.0
PINGS_UNANSWERED_MAX = 3
# Who held on for that long begins to wait anew from the shortest pause.
STEADY_SECONDS = 3.0
RECONNECT_SECONDS_MAX = 2.0
PING = pack([(b"PING",)])


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
        self._metrics = metrics
        self._subscriptions = Subscriptions(prefix)
        self._confirmations = Confirmations(metrics.bus_confirmations_late.inc)
        self._link: Link | None = None
        self._asking = False
        self._deliver: Deliver = lambda topic, item: None
        self._connected: Callable[[], None] = lambda: None
        self.connected = False
        self._ever = asyncio.Event()

    async def started(self, seconds: float) -> None:
        """Return when Redis has answered for the first time, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ever.wait()

    # Subscribing: the hub says what is wanted; all that it says in one turn of the loop goes to Redis in one write.

    def subscribe(self, topic: str) -> None:
        self._subscriptions.want(topic)
        self._ask_soon()

    def unsubscribe(self, topic: str) -> None:
        self._subscriptions.drop(topic)
        self._ask_soon()

    def _ask_soon(self) -> None:
        if self._link is not None and not self._asking:
            self._asking = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        self._asking = False
        if self._link is not None and (commands := self._subscriptions.commands()):
            self._link.write(pack(commands))

    async def subscribed(self, topic: str, seconds: float) -> None:
        """Return when Redis has confirmed the topic, or after `seconds`: a follower goes on either way."""
        if self.connected and not self._subscriptions.is_confirmed(topic):
            await self._confirmations.wait(topic, seconds)

    # Listening

    async def run(self, deliver: Deliver, connected: Callable[[], None]) -> None:
        """Listen until cancelled, starting over as often as it takes.

        `deliver(topic, item)` is called for every message, `connected` after every new connection.
        """
        self._deliver, self._connected = deliver, connected
        attempt = 0
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._listen_once()
            except UNAVAILABLE as error:
                if self.connected or attempt == 0:
                    log.warning("redis_away", reason=type(error).__name__)
            self.connected = False
            self._metrics.bus_connected.set(0)
            attempt = 0 if asyncio.get_running_loop().time() - started > STEADY_SECONDS else attempt + 1
            pause = min(RECONNECT_SECONDS_MAX, 0.05 * 2**attempt)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  (spreads reconnects)

    async def _listen_once(self) -> None:
        """Until the link is lost; raises why."""
        link = await open_link(self._url, self._received)
        try:
            self._subscriptions.start_over()
            self._link = link
            self._ask()  # before the first ping: the pong says that all of it is in force
            unanswered = 0
            while unanswered < PINGS_UNANSWERED_MAX:
                link.heard = False
                link.write(PING)
                await asyncio.wait([link.lost], timeout=PING_SECONDS)
                if link.lost.done():
                    raise link.lost.result()
                unanswered = 0 if link.heard else unanswered + 1
            raise TimeoutError("no pong")
        finally:
            self._link = None
            link.lose(ConnectionError("given up"))

    def _received(self, replies: list[Reply]) -> None:
        topics, deliver, messages = self._subscriptions.topics, self._deliver, 0
        for reply in replies:
            if not (isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message"):
                self._answered(reply)
                continue
            messages += 1
            _, channel, data = reply
            if not (isinstance(channel, bytes) and isinstance(data, bytes)) or channel not in topics:
                continue  # not wanted any more
            topic = topics[channel]
            try:
                item = decode(topic, data)
            except ValueError as error:
                log.warning("bus_message_refused", **hub.subject(topic), reason=str(error))
                continue
            deliver(topic, item)
        self._metrics.bus_received.value += messages

    def _answered(self, reply: Reply) -> None:
        """What else Redis says; what we do not know is not for us."""
        match reply:
            case [b"subscribe", bytes(channel), _]:
                topic = self._subscriptions.confirm(channel)
                if topic is not None:
                    self._confirmations.confirm(topic)
            case b"PONG" | [b"pong", _]:
                self._ponged()
            case Exception():
                raise reply

    def _ponged(self) -> None:
        if not self.connected:
            self.connected = True
            self._ever.set()
            self._metrics.bus_connected.set(1)
            log.info("redis_connected")
            self._connected()
