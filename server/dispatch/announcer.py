"""Tells the other dispatchers that there is something to claim: after the commit, and of many messages at once.

A NOTIFY in the transaction of each message would make all commits of the database take turns. One that is lost costs
the others no more than a turn of their poll.
"""

import asyncio
import contextlib

from server.db import DATABASE_ERRORS, Pool

PAUSE_SECONDS = 0.05


class Announcer:
    """`announce()` returns at once; `run()` until cancelled."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._news = asyncio.Event()

    def announce(self) -> None:
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            with contextlib.suppress(*DATABASE_ERRORS):
                await self._pool.execute("select pg_notify('dispatcher', '')")
            await asyncio.sleep(PAUSE_SECONDS)
