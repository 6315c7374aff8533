"""Followers that wait until Redis has confirmed their topics, each for a bounded time; one timer for all of them."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count


class Confirmations:
    """`late(n)` is called when `n` waits are over without a confirmation."""

    def __init__(self, late: Callable[[int], object]) -> None:
        self._late = late
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._deadlines: list[tuple[float, int, str, asyncio.Future[None]]] = []  # a heap
        self._order = count()  # of equal deadlines
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, topic: str, seconds: float) -> "asyncio.Future[None]":
        """Done when the topic is confirmed, or after `seconds`; may be cancelled."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(topic, []).append(future)
        deadline = loop.time() + seconds
        heapq.heappush(self._deadlines, (deadline, next(self._order), topic, future))
        if self._timer is None or deadline < self._timer.when():
            self._set_timer()
        return future

    def confirm(self, topic: str) -> None:
        """All who wait for the topic go on."""
        for future in self._waiting.pop(topic, ()):
            if not future.done():
                future.set_result(None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadlines:
            self._timer = asyncio.get_running_loop().call_at(self._deadlines[0][0], self._expire)

    def _expire(self) -> None:
        """End the waits whose time is over; those that have ended are cleared away with them."""
        now = asyncio.get_running_loop().time()
        late = 0
        self._timer = None
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][3].done()):
            _, _, topic, future = heapq.heappop(self._deadlines)
            waiting = self._waiting.get(topic)
            if waiting is not None and future in waiting:
                waiting.remove(future)
                if not waiting:
                    del self._waiting[topic]
            if not future.done():
                future.set_result(None)
                late += 1
        if late:
            self._late(late)
        self._set_timer()
