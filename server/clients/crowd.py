"""What the followers of a run share: where they go, how restless they are, and who is connected now."""

import asyncio
import random
from collections.abc import Callable, Sequence

import msgspec

from server.clients.judge import Defect
from server.clients.origin import Origin
from server.clients.socket import Socket
from server.clients.streaming import Streaming
from server.clients.views import Follow, Leg

# Heartbeats come every 15 seconds; who hears nothing for longer is connected to nobody.
SILENCE_SECONDS_MAX = 20.0


class Pace(msgspec.Struct, frozen=True):
    """How restless clients are, in seconds.

    A visit without a break lasts about so long; who has left comes back at once or within so long; who follows all
    tasks does so for a time between these.
    """

    visit: float
    away_max: float
    all: tuple[float, float]


USUAL = Pace(visit=5.0, away_max=3.0, all=(20.0, 60.0))


class Crowd:
    """What all followers share: where the web processes are, who is connected, where finished follows go."""

    def __init__(self, webs: Sequence[Origin], record: Callable[[Follow], None], seed: int, pace: Pace = USUAL) -> None:
        self.webs = webs
        self.record = record
        self.pace = pace
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
