"""Reads tasks: for callers under row level security, and for the push path what changed of late.

Everything comes from the view taskbeam.changes, so that a snapshot read now, one replayed from the log and one
published are the same object.

Where a few rows are chosen first, the view is asked for each of them (lateral, limit 1). In a plain join Postgres,
which does not know whose rows the policies will let through, begins with all tasks of the user instead.
"""

import base64
import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
import msgspec

from server.db import Pool, acting_as
from server.tasks import snapshot
from server.tasks.histories import Histories, History
from server.tasks.ledger import LedgerEntry
from server.tasks.overviews import Overview, Overviews
from server.tasks.snapshot import TaskChange

HISTORY_CHUNK = 200
DELIVERIES_SHOWN_MAX = 1_000


class BadPageCursor(ValueError):
    """The cursor of a list is not one of ours."""


class Recent(msgspec.Struct, frozen=True):
    """That a task changed of late: its newest version and its owner's newest number among those changes."""

    task_id: str
    user_id: str
    version: int
    seq: int


class Gone(NamedTuple):
    """A task that was deleted, whose it was, and how it ended if that was at the same time."""

    task_id: str
    user_id: str
    end: TaskChange | None


class TaskReader:
    """All reads of tasks. `claims` is the caller's verified claims as JSON text: RLS decides what they see."""

    def __init__(self, pool: Pool, *, public_url: str) -> None:
        self._pool = pool
        self._public_url = public_url
        self._histories = Histories(pool, public_url=public_url)
        self._overviews = Overviews(pool, public_url=public_url)

    def _changes(self, rows: Sequence[asyncpg.Record]) -> list[TaskChange]:
        return [snapshot.from_row(row, self._public_url) for row in rows]

    async def since(self, claims: str, task_id: str, after: int) -> History:
        """The changes of status after version `after`, and always the newest version, last; none if not visible."""
        return await self._histories.read(claims, task_id, after)

    async def all_since(self, claims: str, user_id: str, seq: int) -> list[TaskChange]:
        """The user's events after number `seq`, in order, HISTORY_CHUNK at most.

        Without the failures that a retry has superseded: they are history, and would be taken for the end.
        """
        async with acting_as(self._pool, claims) as connection:
            rows = await connection.fetch(
                """select c.* from (
                     select task_id, version, owner_seq from public.task_events e
                      where user_id = $1 and owner_seq > $2
                        and not (status = 'failed' and exists (
                              select from public.image_generations t
                               where t.task_id = e.task_id and t.attempt > e.attempt))
                      order by owner_seq limit $3) e
                   cross join lateral (
                     select * from taskbeam.changes where (task_id, version) = (e.task_id, e.version) limit 1) c
                   order by c.owner_seq""",
                user_id,
                seq,
                HISTORY_CHUNK,
            )
        return self._changes(rows)

    async def overview(self, claims: str, user_id: str, task_ids: Sequence[str] | None) -> Overview:
        """One consistent picture of the tasks named, or (None) of the open and newest, SNAPSHOT_TASKS_MAX at most."""
        return await self._overviews.read(claims, user_id, task_ids)

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
                   cross join lateral (
                     select * from taskbeam.changes where (task_id, version) = (t.task_id, t.version) limit 1) c
                   order by c.created_at desc, c.task_id desc""",
                user_id,
                *before,
                status,
                limit + 1,
            )
        more = len(rows) > limit
        rows = rows[:limit]
        return self._changes(rows), _encode_page(rows[-1]) if more else None

    async def deliveries(self, claims: str, task_id: str) -> list[LedgerEntry] | None:
        """What was said of a task, oldest first; None where the task is not visible."""
        async with acting_as(self._pool, claims) as connection:
            rows = await connection.fetch(
                """select d.at, d.kind, d.outcome, d.delivery, d.status
                     from (select task_id from public.image_generations where task_id = $1) t
                     left join public.task_deliveries d using (task_id) order by d.at limit $2""",
                task_id,
                DELIVERIES_SHOWN_MAX,
            )
        return [LedgerEntry(**row) for row in rows if row["at"] is not None] if rows else None

    async def now(self) -> str:
        """What is committed now, as a Postgres snapshot, for changed_since()."""
        snapshot: str = await self._pool.fetchval("select pg_current_snapshot()::text")
        return snapshot

    async def changed_since(self, since: str) -> tuple[str, list[Recent], list[Gone]]:
        """The snapshot of now, and which tasks were changed or deleted by what is in it and was not in `since`.

        Each change is found once, at whatever time it was made: it is of a transaction that was open then, or began
        later. For the tick, as the server: who may see what was decided when each follower joined.
        """
        _, newest, running = since.split(":")
        rows = await self._pool.fetch(
            """with late as (
                 -- not what a restored log has from a cluster that counted further
                 select task_id, user_id, version, owner_seq, null::bytea as last from public.task_events
                  where xact >= $1::text::xid8 and xact < pg_snapshot_xmax(pg_current_snapshot())
                 union all
                 select task_id, user_id, version, owner_seq, null from public.task_events
                  where xact = any ($2::text[]::xid8[])
                 union all
                 select task_id, user_id, null, null, last from taskbeam.deletions
                  where xact >= $1::text::xid8 and xact < pg_snapshot_xmax(pg_current_snapshot())
                 union all
                 select task_id, user_id, null, null, last from taskbeam.deletions
                  where xact = any ($2::text[]::xid8[])
               )
               select pg_current_snapshot()::text as snapshot, task_id, user_id::text,
                      max(version) as version, max(owner_seq) as seq, bool_or(version is null) as gone,
                      (array_agg(last) filter (where last is not null))[1] as last
                 from (select) once left join late on true group by 2, 3""",
            newest,
            running.split(",") if running else [],
        )
        found = [row for row in rows if row["task_id"]]
        return (
            rows[0]["snapshot"],
            [Recent(row["task_id"], row["user_id"], row["version"], row["seq"]) for row in found if row["version"]],
            [
                Gone(row["task_id"], row["user_id"], snapshot.from_body(row["last"]) if row["last"] else None)
                for row in found
                if row["gone"]
            ],
        )

    async def newest(self, task_ids: Sequence[str]) -> list[Recent]:
        """The newest change of each of these tasks, whenever it was; for the tick, as changed_since()."""
        rows = await self._pool.fetch(
            """select e.task_id, e.user_id::text, e.version, e.owner_seq as seq from unnest($1::text[]) named (task_id)
                 cross join lateral (
                   select version from public.image_generations where task_id = named.task_id limit 1) t
                 cross join lateral (
                   select * from public.task_events where (task_id, version) = (named.task_id, t.version) limit 1) e""",
            task_ids,
        )
        return [Recent(row["task_id"], row["user_id"], row["version"], row["seq"]) for row in rows]

    async def missed(self, seen: dict[str, int]) -> list[TaskChange]:
        """For each task the changes of status after the version given, and its newest; by task and version."""
        rows = await self._pool.fetch(
            """select c.* from unnest($1::text[], $2::int[]) as f (task_id, seen)
                 cross join lateral (
                   select version from public.image_generations where task_id = f.task_id and version > f.seen
                   union
                   select version from public.task_events
                    where task_id = f.task_id and version > f.seen and version = status_version) v
                 cross join lateral (
                   select * from taskbeam.changes where (task_id, version) = (f.task_id, v.version) limit 1) c
                order by c.task_id, c.version""",
            list(seen),
            list(seen.values()),
        )
        return self._changes(rows)

    async def typical_seconds(self) -> float | None:
        """The median time that tasks of late took from creation to completion; None where there are none."""
        seconds: float | None = await self._pool.fetchval(
            """select percentile_cont(0.5) within group (order by extract(epoch from late.at - t.created_at))
                 from (select task_id, at from public.task_events
                        where status = 'completed' and version = status_version order by at desc limit 50) late
                 join public.image_generations t using (task_id)"""
        )
        return seconds


def _encode_page(row: asyncpg.Record) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((row["created_at"], row["task_id"]))).decode().rstrip("=")


def _decode_page(cursor: str) -> tuple[dt.datetime, str]:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        created_at, task_id = msgspec.json.decode(raw, type=tuple[dt.datetime, str])
        # What Postgres cannot hold is none of ours: years out of range in UTC, times without a zone, NUL.
        if created_at.tzinfo is None or "\0" in task_id:
            raise ValueError(raw)
        return created_at.astimezone(dt.UTC), task_id
    except (ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise BadPageCursor(cursor) from error
