"""Ends the tasks past their deadline that nobody can be asked about. The floor under dispatch/reconciler.py.

These are the rows that others have written, without a message of ours, and those that were looked up in vain more
often than any rule of the reconciler's allows for. So no task stays open for ever.
"""

import contextlib
from collections.abc import Awaitable, Callable

import asyncpg
import structlog

from server.db import UNAVAILABLE, Pool

log = structlog.get_logger()

EXPIRED_A_STEP_MAX = 100
# More than the reconciler ever makes of an overdue task: each is counted before it is made, and may kill its process.
LOOKUPS_MAX = 60


class Expiry:
    """`announce(task_id, version)` publishes what is committed."""

    def __init__(self, pool: Pool, announce: Callable[[str, int], Awaitable[None]]) -> None:
        self._pool = pool
        self._announce = announce

    async def expire(self) -> int:
        """End what is overdue and past asking, a bounded number; returns how many.

        A rule of the app's own may refuse one of them: it is put off, and must not hold up the others.
        """
        try:
            return await self._expire(EXPIRED_A_STEP_MAX)
        except UNAVAILABLE:
            raise
        except asyncpg.PostgresError:
            ended = 0
            for task_id in await self._overdue():
                try:
                    ended += await self._expire(1, task_id)
                except UNAVAILABLE:
                    raise
                except asyncpg.PostgresError as error:
                    log.error("cannot_expire", task_id=task_id, reason=str(error))
                    await self._put_off(task_id)
            return ended

    async def _overdue(self) -> list[str]:
        rows = await self._pool.fetch(
            """select task_id from public.image_generations t
                where status in ('pending', 'processing') and deadline_at < now()
                  and not exists (select from taskbeam.dispatches d
                                   where (d.task_id, d.attempt) = (t.task_id, t.attempt) and d.lookups < $2)
                order by deadline_at limit $1""",
            EXPIRED_A_STEP_MAX,
            LOOKUPS_MAX,
        )
        return [row["task_id"] for row in rows]

    async def _put_off(self, task_id: str) -> None:
        """Look at this one again in an hour. Raises UNAVAILABLE."""
        with contextlib.suppress(asyncpg.IntegrityConstraintViolationError, asyncpg.RaiseError):
            await self._pool.execute(
                "update public.image_generations set deadline_at = now() + interval '1 hour' where task_id = $1",
                task_id,
            )

    async def _expire(self, count: int, only: str | None = None) -> int:
        rows = await self._pool.fetch(
            """
            with overdue as (  -- not a subquery: that might be run again for each row, and lock others each time
              select task_id from public.image_generations t
               where status in ('pending', 'processing') and deadline_at < now() and ($2::text is null or task_id = $2)
                 and not exists (select from taskbeam.dispatches d
                                  where (d.task_id, d.attempt) = (t.task_id, t.attempt) and d.lookups < $3)
               order by deadline_at limit $1 for update skip locked
            )
            update public.image_generations t set
              status = 'failed', preview = null,
              error_code = case when began_at is null then 'not_started' else 'timeout' end,
              error = case when began_at is null then 'Nobody began with it within a day'
                           else 'The generator did not finish in time' end,
              version = version + 1,
              status_version = version + 1, updated_at = clock_timestamp()
            from overdue where t.task_id = overdue.task_id
            returning t.task_id, t.version, t.attempt, t.error_code
            """,
            count,
            only,
            LOOKUPS_MAX,
        )
        for row in rows:
            log.warning("task_expired", task_id=row["task_id"], attempt=row["attempt"], reason=row["error_code"])
            await self._announce(row["task_id"], row["version"])
        return len(rows)
