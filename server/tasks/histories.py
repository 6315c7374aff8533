"""Reads what followers join with, for many callers in one call: who asks while calls are under way waits for the next.

A thousand clients that come back after a restart are a few calls, not a thousand transactions. Row level security
decides each pair of caller and task (sql/007_joins.sql).
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from server.db import ACQUIRE_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_MS, UNAVAILABLE, Pool
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange

PAIRS_A_CALL_MAX = 300
CALLS_MAX = 2


class History(NamedTuple):
    """Changes of a task after a cursor, and whether its log has the next version: else what is older was cut off."""

    changes: list[TaskChange]
    continues: bool


class _Asked(NamedTuple):
    claims: str
    task_id: str
    after: int
    answer: "asyncio.Future[History]"


class Histories:
    """`read()` is all: it joins what others ask for at the same time."""

    def __init__(self, pool: Pool, *, public_url: str) -> None:
        self._pool = pool
        self._public_url = public_url
        self._asked: deque[_Asked] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def read(self, claims: str, task_id: str, after: int) -> History:
        """The changes of status after version `after`, and always the newest version, last; none if not visible.

        `claims` are the caller's verified claims as JSON text.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked(claims, task_id, after, loop.create_future())
        self._asked.append(asked)
        if len(self._calls) < CALLS_MAX:
            call = loop.create_task(self._call())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return await asked.answer

    async def _call(self) -> None:
        await asyncio.sleep(0)  # for whoever asks in this turn of the loop
        while self._asked:
            batch = [self._asked.popleft() for _ in range(min(PAIRS_A_CALL_MAX, len(self._asked)))]
            batch = [asked for asked in batch if not asked.answer.done()]
            try:
                await self._answer(batch)
            except asyncio.CancelledError:
                for asked in batch:
                    asked.answer.cancel()
                raise
            except UNAVAILABLE as error:
                _fail(batch, error)
            except Exception as error:
                # Of one of them, perhaps: the others are not to suffer for it.
                await self._one_by_one(batch, error)

    async def _one_by_one(self, batch: Sequence[_Asked], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch, error)
            return
        for asked in batch:
            try:
                await self._answer([asked])
            except Exception as its_own:
                _fail([asked], its_own)

    async def _answer(self, batch: Sequence[_Asked]) -> None:
        if not batch:
            return
        async with (
            self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
            asyncio.timeout(STATEMENT_TIMEOUT_MS / 1000),
        ):
            rows = await connection.fetch(
                "select place, continues, (change).* from taskbeam.histories($1, $2, $3)",
                [asked.claims for asked in batch],
                [asked.task_id for asked in batch],
                [asked.after for asked in batch],
            )
        found: dict[int, tuple[bool, list[asyncpg.Record]]] = {}
        for row in rows:
            found.setdefault(row["place"] - 1, (row["continues"], []))[1].append(row)
        for place, asked in enumerate(batch):
            continues, mine = found.get(place, (False, []))
            if not asked.answer.done():
                changes = [snapshot.from_row(row, self._public_url) for row in mine]
                asked.answer.set_result(History(changes, continues))


def _fail(batch: Sequence[_Asked], error: BaseException) -> None:
    for asked in batch:
        if not asked.answer.done():
            asked.answer.set_exception(error)
