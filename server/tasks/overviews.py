"""Reads what followers of many tasks join with, for many callers in one call, as histories.py does for one task.

Row level security decides for each of them (sql/009_access.sql).
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from server.db import ACQUIRE_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_MS, Pool
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange
from server.tasks.together import Together

SNAPSHOT_TASKS_MAX = 100
# Few, for each may be a hundred tasks; enough that the transaction around them costs each next to nothing.
OVERVIEWS_A_CALL_MAX = 20


class Overview(NamedTuple):
    """Tasks as they were at the owner's event number `seq`, oldest first; up to `trimmed` the log may have gaps."""

    seq: int
    trimmed: int
    tasks: list[TaskChange]


class _Asked(NamedTuple):
    claims: str
    user_id: str
    named: str | None


class Overviews:
    """`read()` is all: it joins what others ask for at the same time."""

    def __init__(self, pool: Pool, *, public_url: str) -> None:
        self._pool = pool
        self._public_url = public_url
        self._together = Together(self._read, batch_max=OVERVIEWS_A_CALL_MAX)

    async def read(self, claims: str, user_id: str, task_ids: Sequence[str] | None) -> Overview:
        """One consistent picture of the tasks named, or (None) of the open and newest, SNAPSHOT_TASKS_MAX at most.

        `claims` are the caller's verified claims as JSON text; no id has a comma (snapshot.TASK_ID).
        """
        return await self._together.ask(_Asked(claims, user_id, None if task_ids is None else ",".join(task_ids)))

    async def _read(self, batch: Sequence[_Asked]) -> list[Overview]:
        async with (
            self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
            asyncio.timeout(STATEMENT_TIMEOUT_MS / 1000),
            connection.transaction(isolation="repeatable_read"),
        ):
            rows = await connection.fetch(
                "select place, seq, trimmed, (change).* from taskbeam.overviews($1, $2, $3, $4)",
                [asked.claims for asked in batch],
                [asked.user_id for asked in batch],
                [asked.named for asked in batch],
                SNAPSHOT_TASKS_MAX,
            )
        found = [Overview(0, 0, []) for _ in batch]
        for row in rows:
            place = row["place"] - 1
            if row["seq"] is not None:
                found[place] = Overview(row["seq"], row["trimmed"], [])
            else:
                found[place].tasks.append(snapshot.from_row(row, self._public_url))
        return found
