"""Steps of the wall clock: a time server that puts it right, a person, a laptop that slept.

What we measure ourselves is monotonic; but deadlines and leases are times in Postgres, which has only that clock.
"""

import time
from collections.abc import Callable

# Less may be a process that was held up between two looks, and harms nobody.
STEP_SECONDS_MIN = 2.0
# After a step nobody is late before what is pending has followed it (up.py).
SETTLING_SECONDS = 6.0


class Clock:
    """`step()` or `is_settled()` now and then: either notices a step, once."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._steady = steady
        self._ahead = wall() - steady()
        self._stepped_at = steady() - SETTLING_SECONDS

    def step(self) -> float:
        """Seconds the wall clock was put forward (negative: back) since the last look; 0.0 where it simply went on."""
        ahead = self._wall() - self._steady()
        moved, self._ahead = ahead - self._ahead, ahead
        return moved if abs(moved) >= STEP_SECONDS_MIN else 0.0

    def is_settled(self) -> bool:
        """Whether deadlines in Postgres mean what they say: those pending have had time to follow the last step."""
        if self.step():
            self._stepped_at = self._steady()
        return self._steady() - self._stepped_at >= SETTLING_SECONDS
