"""What goes after its time, one bounded step at a time, in one process of all at once.

Tasks some days after their end, with their pictures; the log of a task sooner, down to its newest event. Only tasks
that were accepted here go for their age: what an older app wrote into its own table is its own.

What a database transaction cannot take back comes last: a picture's name is noted with the task's deletion
(sql/005_retention.sql), and forgotten once the file is gone.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import structlog

from server import results
from server.db import UNAVAILABLE, Connection, Pool
from server.metrics import Metrics

log = structlog.get_logger()

TASKS_A_STEP = 100
PICTURES_A_STEP = 100
NOTES_A_STEP = 5_000
TURN_SECONDS_MAX = 0.5  # of each turn of the upkeep: the rest is for everybody else
PASS_PAUSE_SECONDS = 60.0
# Any number that no other use of advisory locks in this database is likely to take.
LOCK = 0x7461736B_6265616D

# A process whose Postgres was away for longer than that has lost its streams as well.
DELETIONS_KEPT = "1 day"
# A signature is good for five minutes; beyond that its id need not be remembered.
CALLBACK_IDS_KEPT = "10 minutes"


class Retention:
    """`turn()` now and then, in every process. Ages are in days, None keeps for ever; `folder` has the pictures."""

    def __init__(
        self, pool: Pool, folder: Path, metrics: Metrics, *, tasks_days: float | None, events_days: float | None
    ) -> None:
        self._pool = pool
        self._folder = folder
        self._metrics = metrics
        self._tasks_days = tasks_days
        self._events_days = events_days
        self._passed: tuple[Any, str] | None = None  # the place in the present pass over old tasks
        self._rest_until = 0.0
        self._said: set[str] = set()  # what would not go
        self._tasks_a_step = TASKS_A_STEP

    async def turn(self) -> None:
        """As many steps as are due, and time allows; one that fails holds up no other. Raises UNAVAILABLE."""
        until = time.monotonic() + TURN_SECONDS_MAX
        for step in (self.discard_pictures, self._forget_notes, self._trim_logs, self._delete_tasks):
            try:
                while await step() and time.monotonic() < until:
                    pass
            except asyncpg.QueryCanceledError:
                log.warning("retention_slow", step=step.__name__.strip("_"))
            except UNAVAILABLE:
                raise
            except asyncpg.PostgresError as error:
                self._say_once(step.__name__, "retention_failed", step=step.__name__.strip("_"), reason=str(error))

    async def discard_pictures(self, names: Sequence[str] | None = None) -> bool:
        """Take the files of deleted tasks away, of these or of any; whether there may be more.

        What another process is about to take away is left to it.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                """select name from taskbeam.discarded_pictures where $1::text[] is null or name = any ($1)
                    order by name limit $2 for update skip locked""",
                names,
                PICTURES_A_STEP,
            )
            gone = await asyncio.to_thread(self._unlink, [row["name"] for row in rows])
            await connection.execute("delete from taskbeam.discarded_pictures where name = any ($1)", gone)
        return names is None and len(gone) == PICTURES_A_STEP

    def _unlink(self, names: Sequence[str]) -> list[str]:
        gone = []
        for name in names:
            try:
                results.discard(self._folder, name)
                gone.append(name)
            except OSError as error:
                self._say_once(name, "cannot_delete_picture", name=name, reason=error.strerror)
        return gone

    def _say_once(self, key: str, event: str, **about: object) -> None:
        if key not in self._said and len(self._said) < NOTES_A_STEP:
            self._said.add(key)
            log.error(event, **about)

    async def _delete_tasks(self) -> bool:
        if self._tasks_days is None or time.monotonic() < self._rest_until:
            return False
        async with self._pool.acquire() as connection, connection.transaction():
            if not await _alone(connection):
                return False
            old = await connection.fetch(
                """select created_at, task_id from taskbeam.dispatches
                    where attempt = 1 and created_at < now() - $1 * interval '1 day'
                      and ($2::timestamptz is null or (created_at, task_id) > ($2, $3))
                    order by created_at, task_id limit $4""",
                self._tasks_days,
                *(self._passed or (None, None)),
                self._tasks_a_step,
            )
            gone = await self._delete_what_can_be(connection, [row["task_id"] for row in old])
        if gone:
            self._metrics.deleted["age"].inc(gone)
            log.info("old_tasks_deleted", count=gone)
        self._passed = (old[-1]["created_at"], old[-1]["task_id"]) if len(old) == self._tasks_a_step else None
        if self._passed is None:
            self._rest_until = time.monotonic() + PASS_PAUSE_SECONDS
        self._tasks_a_step = min(TASKS_A_STEP, 2 * self._tasks_a_step)
        return self._passed is not None

    async def _delete_what_can_be(self, connection: Connection, task_ids: Sequence[str]) -> int:
        """Rows of the app's own may refer to some of them: those stay, and must not hold up the others."""
        try:
            return await self._delete(connection, task_ids)
        except asyncpg.QueryCanceledError as error:
            if len(task_ids) > 1:  # what goes with them is much: fewer the next time
                self._tasks_a_step = max(1, len(task_ids) // 4)
                raise
            self._say_once(task_ids[0], "cannot_delete_task", task_id=task_ids[0], reason=str(error))
            return 0
        except UNAVAILABLE:
            raise
        except asyncpg.PostgresError as error:
            if len(task_ids) == 1:
                self._say_once(task_ids[0], "cannot_delete_task", task_id=task_ids[0], reason=str(error))
                return 0
            return sum([await self._delete_what_can_be(connection, [task_id]) for task_id in task_ids])

    async def _delete(self, connection: Connection, task_ids: Sequence[str]) -> int:
        async with connection.transaction():
            gone: int = await connection.fetchval(
                """with old as (
                     select task_id from public.image_generations
                      where task_id = any ($1) and status in ('completed', 'failed')
                        and updated_at < now() - $2 * interval '1 day'
                      order by task_id for update skip locked
                   ), gone as (
                     delete from public.image_generations t using old where t.task_id = old.task_id returning 1
                   )
                   select count(*) from gone""",
                task_ids,
                self._tasks_days,
            )
            await connection.execute("set constraints all immediate")  # what is deferred is refused here, if at all
        return gone

    async def _trim_logs(self) -> bool:
        if self._events_days is None:
            return False
        async with self._pool.acquire() as connection, connection.transaction():
            if not await _alone(connection):
                return False
            # All that ended at the very time of the last one come with it, so that none falls between two steps.
            ended = await connection.fetch(
                """with first as (
                     select max(at) as last, count(*) as n from (
                       select at from public.task_events
                        where status in ('completed', 'failed') and version = status_version
                          and at > (select reached from taskbeam.trimming)
                          and at < now() - $1 * interval '1 day'
                        order by at limit $2) s
                   )
                   select distinct e.task_id, first.last, first.n from first join public.task_events e
                     on e.status in ('completed', 'failed') and e.version = e.status_version
                    and e.at > (select reached from taskbeam.trimming) and e.at <= first.last""",
                self._events_days,
                TASKS_A_STEP,
            )
            if not ended:
                return False
            left = await self._cut(connection, [row["task_id"] for row in ended])
            if not left:
                await connection.execute("update taskbeam.trimming set reached = $1", ended[0]["last"])
        return bool(not left and ended[0]["n"] >= TASKS_A_STEP)

    async def _cut(self, connection: Connection, task_ids: Sequence[str]) -> int:
        """Cut the logs of those that ended long enough ago for good; how many somebody else holds, to be cut later.

        Nothing is waited for: who deletes a user locks in another order than we do.
        """
        left: int = await connection.fetchval(
            """with wanted as (
                 select t.task_id, t.user_id, t.version from unnest($1::text[]) named (task_id)
                   cross join lateral (
                     select task_id, user_id, version from public.image_generations
                      where task_id = named.task_id and status in ('completed', 'failed') limit 1) t
                   cross join lateral (
                     select from public.task_events e
                      where (e.task_id, e.version) = (t.task_id, t.version) and e.at < now() - $2 * interval '1 day'
                      limit 1) ended
               ), tasks as (
                 select task_id from public.image_generations where task_id = any (array(select task_id from wanted))
                  order by task_id for no key update skip locked
               ), owners as (
                 select user_id from taskbeam.owners where user_id = any (array(select user_id from wanted))
                  order by user_id for no key update skip locked
               ), mine as (
                 select w.* from wanted w where w.task_id in (select task_id from tasks)
                    and w.user_id in (select user_id from owners)
               ), cut as (
                 select e.task_id, e.version, e.user_id, e.owner_seq from mine
                  cross join lateral (
                    select * from public.task_events
                     where task_id = mine.task_id and version < mine.version order by version limit all) e
               ), told as (
                 update taskbeam.owners o set trimmed = greatest(o.trimmed, (
                          select max(owner_seq) from cut where cut.user_id = o.user_id))
                  where o.user_id = any (array(select user_id from cut))
               ), gone as (
                 delete from public.task_events e using cut
                  where (e.task_id, e.version) = (cut.task_id, cut.version)
               )
               select (select count(*) from wanted) - (select count(*) from mine)""",
            task_ids,
            self._events_days,
        )
        return left

    async def _forget_notes(self) -> bool:
        await self._pool.execute(
            f"""delete from taskbeam.tickets where digest in (
                  select digest from taskbeam.tickets where expires_at < now()
                   order by expires_at limit {NOTES_A_STEP} for update skip locked)"""  # noqa: S608  (constants)
        )
        await self._pool.execute(
            f"""delete from taskbeam.callbacks_seen where jti in (
                  select jti from taskbeam.callbacks_seen where seen_at < now() - interval '{CALLBACK_IDS_KEPT}'
                   order by seen_at limit {NOTES_A_STEP})"""  # noqa: S608  (constants)
        )
        await self._pool.execute(
            f"""delete from taskbeam.deletions where ctid = any (array(
                  select ctid from taskbeam.deletions where at < now() - interval '{DELETIONS_KEPT}'
                   order by at limit {NOTES_A_STEP}))"""  # noqa: S608  (constants)
        )
        return False


async def _alone(connection: Connection) -> bool:
    """Whether no other process is at it, until the end of this transaction."""
    free: bool = await connection.fetchval("select pg_try_advisory_xact_lock($1)", LOCK)
    return free
