"""How long tasks take of late, and from that when it is worth asking again.

The figure is advice: read now and then in the background, never while a request waits for it.
"""

POLL_MS_MIN = 500
POLL_MS_MAX = 10_000
POLL_MS_UNKNOWN = 1_000


class Pace:
    """`typical_seconds` is the median of late, None before the first task has completed."""

    def __init__(self) -> None:
        self.typical_seconds: float | None = None

    def poll_after_ms(self, age_seconds: float) -> int:
        """When to ask again for a task accepted `age_seconds` ago.

        Half the time that is left, so that the answers come closer as the end does; an overdue task is asked
        for less and less often.
        """
        if self.typical_seconds is None:
            wait = POLL_MS_UNKNOWN + age_seconds * 50
        elif age_seconds < self.typical_seconds:
            wait = (self.typical_seconds - age_seconds) * 500
        else:
            wait = POLL_MS_MIN + (age_seconds - self.typical_seconds) * 100
        return int(min(POLL_MS_MAX, max(POLL_MS_MIN, wait)))
