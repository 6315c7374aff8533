"""Reads tasks: for callers under row level security, and for the push path what changed of late.

Everything comes from the view taskbeam.changes, so that a snapshot read now, one replayed from the log and one
published are the same object.
"""

import base64
import datetime as dt
from collections.abc import Sequence

import asyncpg
import msgspec

from server.db import Pool, acting_as
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange

HISTORY_CHUNK = 500
SNAPSHOT_TASKS_MAX = 100


class BadPageCursor(ValueError):
    """The cursor of a list is not one of ours."""


class Recent(msgspec.Struct, frozen=True):
    """That a task changed of late: its newest version and its owner's newest number among those changes."""

    task_id: str
    user_id: str
    version: int
    seq: int


class TaskReader:
    """All reads of tasks. `claims` is the caller's verified claims as JSON text: RLS decides what they see."""

    def __init__(self, pool: Pool, *, public_url: str) -> None:
        self._pool = pool
        self._public_url = public_url

    def _changes(self, rows: Sequence[asyncpg.Record]) -> list[TaskChange]:
        return [snapshot.from_row(row, self._public_url) for row in rows]

    async def since(self, claims: str, task_id: str, after: int) -> list[TaskChange]:
        """The changes of status after version `after`, and always the newest version, last. [] if not visible."""
        async with acting_as(self._pool, claims) as connection:
            rows = await connection.fetch(
                """select * from taskbeam.changes
                    where task_id = $1 and (newest or (version > $2 and version = status_version))
                    order by version""",
                task_id,
                after,
            )
        return self._changes(rows)

    async def position(self, claims: str, user_id: str) -> int:
        """The number of the user's newest event, 0 before the first."""
        async with acting_as(self._pool, claims) as connection:
            return await connection.fetchval("select seq from taskbeam.owners where user_id = $1", user_id) or 0

    async def all_since(self, claims: str, user_id: str, seq: int) -> list[TaskChange]:
        """The user's events after number `seq`, in order, HISTORY_CHUNK at most."""
        async with acting_as(self._pool, claims) as connection:
            rows = await connection.fetch(
                """select * from taskbeam.changes where user_id = $1 and owner_seq > $2
                    order by owner_seq limit $3""",
                user_id,
                seq,
                HISTORY_CHUNK,
            )
        return self._changes(rows)

    async def overview(self, claims: str, user_id: str, task_ids: Sequence[str] | None) -> tuple[int, list[TaskChange]]:
        """One consistent picture: the number of the newest event, and tasks as they are at it, oldest first.

        The tasks are those named, or (None) the open ones and the newest ones, SNAPSHOT_TASKS_MAX at most.
        """
        async with self._pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            await connection.execute("select taskbeam.act_as($1)", claims)
            seq = await connection.fetchval("select seq from taskbeam.owners where user_id = $1", user_id)
            if task_ids is None:
                task_ids = await connection.fetchval(
                    """select array_agg(task_id) from (
                         select task_id from public.image_generations where user_id = $1
                          order by (status in ('pending', 'processing')) desc, created_at desc, task_id desc
                          limit $2) newest""",
                    user_id,
                    SNAPSHOT_TASKS_MAX,
                )
            rows = await connection.fetch(
                "select * from taskbeam.changes where task_id = any ($1) and newest order by created_at, task_id",
                task_ids or [],
            )
        return seq or 0, self._changes(rows)

    async def page(
        self, claims: str, user_id: str, *, limit: int, cursor: str | None, status: str | None
    ) -> tuple[list[TaskChange], str | None]:
        """The user's tasks, newest first, and the cursor of the next page. Raises BadPageCursor."""
        before = _decode_page(cursor) if cursor else (dt.datetime(9999, 1, 1, tzinfo=dt.UTC), "")
        async with acting_as(self._pool, claims) as connection:
            rows = await connection.fetch(
                """select c.* from (
                     select task_id, created_at, version from public.image_generations
                      where user_id = $1 and (created_at, task_id) < ($2, $3)
                        and ($4::text is null or status::text = $4)
                      order by created_at desc, task_id desc limit $5) t
                   join taskbeam.changes c using (task_id, version)
                   order by c.created_at desc, c.task_id desc""",
                user_id,
                *before,
                status,
                limit + 1,
            )
        more = len(rows) > limit
        rows = rows[:limit]
        return self._changes(rows), _encode_page(rows[-1]) if more else None

    async def changed_since(
        self, since: dt.datetime | None, window: dt.timedelta, named: Sequence[str]
    ) -> tuple[dt.datetime, list[Recent]]:
        """Which tasks changed after `since` less `window` (None: within the window), and the database's now.

        The tasks `named` are among them whenever they changed. For the tick, as the server: who may see what was
        decided when each follower joined.
        """
        rows = await self._pool.fetch(
            """with clock as (select clock_timestamp() as now), late as (
                 select e.task_id, e.user_id, e.version, e.owner_seq from clock
                   join public.task_events e on e.at > coalesce($1::timestamptz, clock.now) - $2::interval
                 union all
                 select e.task_id, e.user_id, e.version, e.owner_seq from public.image_generations t
                   join public.task_events e using (task_id, version) where t.task_id = any ($3)
               )
               select clock.now, task_id, user_id::text, max(version) as version, max(owner_seq) as seq
                 from clock left join late on true group by 1, 2, 3""",
            since,
            window,
            named,
        )
        return rows[0]["now"], [
            Recent(row["task_id"], row["user_id"], row["version"], row["seq"]) for row in rows if row["task_id"]
        ]

    async def missed(self, seen: dict[str, int]) -> list[TaskChange]:
        """For each task the changes of status after the version given, and its newest; by task and version."""
        rows = await self._pool.fetch(
            """select c.* from unnest($1::text[], $2::int[]) as f (task_id, seen)
                 join taskbeam.changes c on c.task_id = f.task_id and c.version > f.seen
                where c.newest or c.version = c.status_version
                order by c.task_id, c.version""",
            list(seen),
            list(seen.values()),
        )
        return self._changes(rows)

    async def typical_seconds(self) -> float | None:
        """The median time that tasks of late took from creation to completion; None where there are none."""
        seconds: float | None = await self._pool.fetchval(
            """select percentile_cont(0.5) within group (order by extract(epoch from updated_at - created_at))
                 from (select created_at, updated_at from public.image_generations
                        where status = 'completed' order by updated_at desc limit 50) late"""
        )
        return seconds


def _encode_page(row: asyncpg.Record) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((row["created_at"], row["task_id"]))).decode().rstrip("=")


def _decode_page(cursor: str) -> tuple[dt.datetime, str]:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=tuple[dt.datetime, str])
    except (ValueError, msgspec.MsgspecError) as error:
        raise BadPageCursor(cursor) from error
