"""Opens a new attempt of a failed task, because its owner asks for it. Nothing else leaves a terminal state.

Where a good result of an earlier attempt had come too late, and is in the ledger, the new attempt completes with it at
once, in the same transaction: nothing is generated again.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from server.db import ACQUIRE_TIMEOUT_SECONDS, Pool, acting_as
from server.tasks.store import NoSuchTask

ATTEMPTS_MAX = 100


class NotFailed(ValueError):
    """The task is open, or completed."""


class Exhausted(ValueError):
    """It was tried ATTEMPTS_MAX times."""


class Retries:
    """`announce(task_id, version)` publishes what is committed; `turn()` is the right to write (TaskStore)."""

    def __init__(
        self,
        pool: Pool,
        announce: Callable[[str, int], Awaitable[None]],
        turn: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._pool = pool
        self._announce = announce
        self._turn = turn

    async def retry(self, claims: str, task_id: str) -> None:
        """Of two at once one wins. Raises NoSuchTask, NotFailed and Exhausted."""
        async with acting_as(self._pool, claims) as connection:
            attempt = await connection.fetchval(
                "select attempt from public.image_generations where task_id = $1", task_id
            )
        if attempt is None:
            raise NoSuchTask(task_id)
        if attempt >= ATTEMPTS_MAX:
            raise Exhausted(task_id)
        async with (
            self._turn(),
            self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
            connection.transaction(),
        ):
            opened = await connection.fetchrow(
                """update public.image_generations set
                     status = 'pending', attempt = attempt + 1, delivery = 1, error = null, error_code = null,
                     cancelled = false, progress = null, message = null, preview = null, step = null, steps = null,
                     version = version + 1, status_version = version + 1, updated_at = clock_timestamp(),
                     began_at = null, deadline_at = clock_timestamp() + interval '1 day'
                   where task_id = $1 and status = 'failed' returning attempt, version""",
                task_id,
            )
            if opened is None:
                raise NotFailed(task_id)
            versions = [opened["version"]]
            completed = await connection.fetchval(
                """update public.image_generations t set
                     status = 'completed', result = late.result, progress = 100,
                     version = version + 1, status_version = version + 1, updated_at = clock_timestamp()
                   from (select result from public.task_deliveries where task_id = $1 and result is not null
                          order by attempt desc, at limit 1) late
                   where t.task_id = $1 returning t.version""",
                task_id,
            )
            if completed is None:
                await connection.execute(
                    "insert into taskbeam.dispatches (task_id, attempt) values ($1, $2)", task_id, opened["attempt"]
                )
            else:
                versions.append(completed)
        for version in versions:
            await self._announce(task_id, version)
