"""What has to happen now and then, in every web process, one step at a time and bounded: safe to run in many.

Ends tasks whose deadline has passed, forgets the ids of callbacks whose signatures have expired, and looks how
long tasks take of late.
"""

import asyncio

import structlog

from server.db import DATABASE_ERRORS, Pool
from server.metrics import Metrics
from server.tasks.pace import Pace
from server.tasks.reading import TaskReader
from server.tasks.store import TaskStore

log = structlog.get_logger()

PERIOD_SECONDS = 2.0
PACE_EVERY = 5
FORGET_EVERY = 30


class Upkeep:
    """`run()` until cancelled."""

    def __init__(self, pool: Pool, store: TaskStore, reader: TaskReader, pace: Pace, metrics: Metrics) -> None:
        self._pool = pool
        self._store = store
        self._reader = reader
        self._pace = pace
        self._metrics = metrics

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
        expired = await self._store.expire()
        if expired:
            self._metrics.expired.inc(expired)
            log.warning("tasks_expired", count=expired)
        if turn % PACE_EVERY == 0:
            self._pace.typical_seconds = await self._reader.typical_seconds()
        if turn % FORGET_EVERY == 0:
            # A signature is good for five minutes; beyond that its id need not be remembered.
            await self._pool.execute(
                """delete from taskbeam.callbacks_seen where jti in (
                     select jti from taskbeam.callbacks_seen where seen_at < now() - interval '10 minutes'
                      order by seen_at limit 10000)"""
            )
