"""When each client is written to: at the end of the turn of the event loop in which there was news, and not too often.

What many are told at once costs one callback, not one for each. After a write a client rests for the window
(STREAM_COALESCE_MS): what comes meanwhile waits and goes out together, but for changes of status, which wait for
nothing. Those that rest with something to say share one timer.
"""

import asyncio
import math
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from server.push.hub import Item, Subscription
from server.tally import Latencies, Tally

log = structlog.get_logger()

# So many are counted at once: the last of them is written to a moment after the first.
COUNTED_AT_ONCE = 100
# The timer goes off for all that are due in the same part of a window.
PARTS = 4
EARLY_SECONDS_MAX = 1e-6


class Clock(Protocol):
    """What is asked of the event loop; `time()` in seconds."""

    def time(self) -> float: ...

    def call_soon(self, callback: Any, /) -> Any: ...

    def call_later(self, delay: float, callback: Any, /) -> Any: ...


class Outlet:
    """One client's way out. `wake()` when there may be something to say; flush() is then called in time."""

    __slots__ = ("_due", "_parked", "_rests_until", "_turns")

    def __init__(self, turns: "Turns") -> None:
        self._turns = turns
        self._due = False
        self._parked = False
        self._rests_until = 0.0

    def wake(self) -> None:
        if not self._due and (not self._parked or self.urgent):
            self._turns.add(self)

    def rest(self) -> None:
        """Something was written."""
        self._rests_until = self._turns.until

    def resting(self, now: float) -> bool:
        """Whether it is too early to write what is not urgent; it is flushed again when it is time."""
        if now >= self._rests_until or self.urgent:
            return False
        self._turns.park(self, self._rests_until)
        return True

    @property
    @abstractmethod
    def urgent(self) -> bool:
        """Whether what waits may not wait for more."""

    @abstractmethod
    def flush(self, now: float) -> None:
        """Write what there is, or nothing."""

    @abstractmethod
    def abort(self) -> None:
        """There was a defect in flush()."""


class Turns:
    """All outlets of a process. `coalesce_ms` is the window, 0 for none."""

    def __init__(self, loop: Clock, coalesce_ms: int) -> None:
        self._loop = loop
        self._window = coalesce_ms / 1000
        self._part = max(0.001, self._window / PARTS)
        self._woken: list[Outlet] = []
        self._parked: dict[int, list[Outlet]] = {}  # by the part of time in which they are due
        self._timed = False
        self.until = 0.0  # who writes in this turn rests until then
        self._ends: list[Any] = []

    def at_end(self, callback: Any) -> None:
        """From now on this is called at the end of each turn, after the last flush."""
        self._ends.append(callback)

    def add(self, outlet: Outlet) -> None:
        woken = self._woken
        if not woken:
            self._loop.call_soon(self._turn)
        outlet._due = True
        woken.append(outlet)

    def park(self, outlet: Outlet, until: float) -> None:
        """Flush it at `until`, or a little later."""
        if not outlet._parked:
            outlet._parked = True
            self._parked.setdefault(math.ceil(until / self._part), []).append(outlet)
            if not self._timed:
                self._start_timer()

    def _start_timer(self) -> None:
        self._timed = True
        first = min(self._parked)
        self._loop.call_later(max(0.0, first * self._part - self._loop.time()), self._come)

    def _turn(self) -> None:
        woken, self._woken = self._woken, []
        self._flush(woken, self._loop.time())

    def _come(self) -> None:
        """The timer: all that are due in the first part that somebody waits for."""
        first = min(self._parked)
        due = []
        for outlet in self._parked.pop(first):
            outlet._parked = False
            if not outlet._due:  # else its turn comes now
                due.append(outlet)
        # A timer may go off a moment early, by its own resolution, and a part begin one early, by that of a float.
        self._flush(due, max(self._loop.time(), first * self._part + EARLY_SECONDS_MAX))
        self._timed = False
        if self._parked:
            self._start_timer()

    def _flush(self, outlets: list[Outlet], now: float) -> None:
        self.until = now + self._window
        for outlet in outlets:
            outlet._due = False
            try:
                outlet.flush(now)
            except Exception as error:
                log.error("stream_failed", exc_info=error)
                outlet.abort()
        for end in self._ends:
            end()


class Bell(Outlet):
    """For a task of the event loop that writes by itself: it waits for its turn."""

    __slots__ = ("_rung", "_subscription")

    def __init__(self, turns: Turns, subscription: Subscription) -> None:
        super().__init__(turns)
        self._rung = asyncio.Event()
        self._subscription = subscription

    @property
    def urgent(self) -> bool:
        return self._subscription.urgent

    def flush(self, now: float) -> None:
        if not self.resting(now):
            self._rung.set()

    def abort(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung.clear()


class Copies:
    """The bytes of what many clients are told: made for the first of them. What is given out counts as sent."""

    def __init__(self, turns: Turns, encoded: Callable[[Item], bytes], sent: Tally, send_seconds: Latencies) -> None:
        self._encoded = encoded
        self._sent = sent
        self._send_seconds = send_seconds
        self._items: list[Item] = []
        self._last: Item | None = None  # of `_items`
        self._data = b""
        self._firsts: list[Item] = []  # what is not counted yet: given out once,
        self._again = 0  # and so often `_items` beyond that
        turns.at_end(self._end)

    def of(self, items: list[Item]) -> bytes:
        """These (at least one), in one piece, for one more client. `items` must not change any more."""
        last = items[-1]
        if last is self._last and items == self._items:
            self._again += 1
            if self._again == COUNTED_AT_ONCE:
                self._count()
            return self._data
        if self._again or len(self._firsts) >= COUNTED_AT_ONCE:
            self._count()
        data = self._encoded(last) if len(items) == 1 else b"".join(map(self._encoded, items))
        self._firsts += items
        self._items, self._last, self._data = items, last, data  # not before there is something to give out
        return data

    def _count(self) -> None:
        now = time.time()
        self._send_seconds.observe_all([now - item.change.at for item in self._firsts])
        self._sent.value += len(self._firsts) + self._again * len(self._items)
        self._firsts.clear()
        if self._again:
            for item in self._items:
                self._send_seconds.observe(max(0.0, now - item.change.at), self._again)
            self._again = 0

    def _end(self) -> None:
        """Of a turn: nothing is kept beyond it."""
        if self._last is not None:
            self._count()
            self._items, self._last, self._data = [], None, b""
