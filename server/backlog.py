"""What waits in Postgres, for /metrics: asked for when somebody scrapes, and then seldom, whoever scrapes how often.

It is of the whole deployment, so every process shows the same. An answer is shown for READ_SECONDS at most; when
Postgres does not answer in a moment, nothing is shown of it but `taskbeam_database_up 0`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.db import DATABASE_ERRORS

log = structlog.get_logger()

READ_SECONDS = 5.0
ANSWER_SECONDS_MAX = 2.0
# A backlog this long is long enough to know, and to count it further would cost what it costs to work it off.
COUNTED_MAX = 10_000
# A scrape has better things to show than Postgres's silence.
SCRAPE_SECONDS_MAX = 0.5


class Backlog(Collector):
    """`refresh()`, then collect. `read` asks Postgres and is never called twice at once."""

    def __init__(
        self, read: Callable[[], Awaitable[Sequence[Metric]]], *, scrape_seconds_max: float = SCRAPE_SECONDS_MAX
    ) -> None:
        self._read = read
        self._scrape_seconds_max = scrape_seconds_max
        self._reading: asyncio.Task[None] | None = None
        self._read_at = -READ_SECONDS
        self._found: Sequence[Metric] | None = None
        self._failing = False

    async def refresh(self) -> None:
        """Return when what is known is new enough, or when the answer takes too long. Raises no DATABASE_ERRORS."""
        if self._reading is None and time.monotonic() - self._read_at >= READ_SECONDS:
            self._found = None
            self._reading = asyncio.create_task(self._renew())
        if self._reading is not None:
            done, _ = await asyncio.wait((self._reading,), timeout=self._scrape_seconds_max)
            for reading in done:
                reading.result()

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                self._found = await self._read()
            self._failing = False
        except DATABASE_ERRORS as error:
            if not self._failing:
                log.warning("backlog_unavailable", reason=type(error).__name__)
            self._failing = True
        finally:
            self._read_at = time.monotonic()
            self._reading = None

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "taskbeam_database_up", "1 when Postgres answered the last reading.", value=int(self._found is not None)
        )
        yield from self._found or ()
