"""Takes connections from a listening socket that several processes may share, so that all have about as many.

Streams last: what counts is how many connections a process has, not how many it was given last. So one that has more
than the sibling with the fewest, and some to spare, leaves a new connection to the others for a moment, and takes it if
nobody did. A loop that accepts as fast as it can gives a trickle to whoever wakes first: of 600 connections at 200 a
second three idle processes got 88, 351 and 161 (docs/deploy.md has the rest, and why not a socket each).
"""

import asyncio
import socket
from collections.abc import Callable, Collection

from server.fleet.board import Place

# In one turn of the event loop: a burst must not keep it from the streams that are there.
ACCEPTED_A_TURN = 8
AHEAD_MAX = 8
# How long it leaves a connection to the others, for each AHEAD_MAX that it is ahead: when all are busy they are late.
# It looks again meanwhile: in a burst they are soon ahead themselves.
PATIENCE_SECONDS = 0.005
PATIENCE_SECONDS_MAX = 0.1
LOOK_SECONDS = 0.002
# Mostly no file descriptor or no memory is left: it will not be better at once.
FAILED_SECONDS = 0.25


class Acceptor:
    """`start()` in the event loop. `connections` are those of the process; each gets a protocol from `make`."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        place: Place | None,
    ) -> None:
        self._listener = listener
        self._make = make
        self._connections = connections
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._patience_began = 0.0

    def start(self) -> None:
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._come)

    def close(self) -> None:
        """Take no more. What waits in the backlog is the siblings', as long as somebody has the socket. Idempotent."""
        self._loop.remove_reader(self._listener)
        if self._later is not None:
            self._later.cancel()
            self._later = None

    @property
    def open(self) -> int:
        """How many connections there are, those that are being set up included."""
        return len(self._connections) + len(self._connecting)

    def _come(self) -> None:
        if self._ahead() > AHEAD_MAX:
            self._patience_began = self._loop.time()
            self._pause(LOOK_SECONDS)
        else:
            self._take()

    def _ahead(self) -> int:
        least = None if self._place is None else self._place.least_open()
        return 0 if least is None else self.open - least

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._later = self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        ahead = self._ahead()
        patience = min(PATIENCE_SECONDS_MAX, PATIENCE_SECONDS * ahead / AHEAD_MAX)
        if ahead > AHEAD_MAX and self._loop.time() < self._patience_began + patience:
            self._later = self._loop.call_later(LOOK_SECONDS, self._look_again)
            return
        self._later = None
        self._loop.add_reader(self._listener, self._come)
        self._take()

    def _take(self) -> None:
        for _ in range(ACCEPTED_A_TURN):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError:
                self._pause(FAILED_SECONDS)
                break
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        if self._place is not None:
            self._place.tell(self.open)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:  # it has gone already
            connection.close()
