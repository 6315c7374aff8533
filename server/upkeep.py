"""What has to happen now and then, in every web process, one step at a time and bounded: safe to run in many.

Ends overdue tasks that nobody can be asked about, looks how long tasks take of late, and lets go what is past its time.
"""

import asyncio

import structlog

from server.clock import Clock
from server.db import DATABASE_ERRORS
from server.metrics import Metrics
from server.retention import Retention
from server.tasks.expiry import Expiry
from server.tasks.pace import Pace
from server.tasks.reading import TaskReader

log = structlog.get_logger()

PERIOD_SECONDS = 2.0
PACE_EVERY = 5


class Upkeep:
    """`run()` until cancelled."""

    def __init__(self, expiry: Expiry, reader: TaskReader, pace: Pace, retention: Retention, metrics: Metrics) -> None:
        self._expiry = expiry
        self._reader = reader
        self._retention = retention
        self._pace = pace
        self._metrics = metrics
        self._clock = Clock()

    async def run(self) -> None:
        turn = 0
        failing = False
        while True:
            try:
                await self._turn(turn)
                failing = False
            except DATABASE_ERRORS as error:
                if not failing:
                    log.warning("upkeep_unavailable", reason=type(error).__name__)
                failing = True
            turn += 1
            await asyncio.sleep(PERIOD_SECONDS)

    async def _turn(self, turn: int) -> None:
        if self._clock.is_settled() and (expired := await self._expiry.expire()):
            self._metrics.expired.inc(expired)
        if turn % PACE_EVERY == 0:
            self._pace.typical_seconds = await self._reader.typical_seconds()
        await self._retention.turn()
