"""Writes tasks: each change is one statement that takes the next version of the row, guarded by its state.

The event row is appended by the schema in the same transaction (sql/003_log.sql). Whoever calls gets the
outcome after the commit; the change is handed to `publish` then, here and nowhere else, so that no caller can
forget it. state.py says the same rules without SQL.
"""

import contextlib
import secrets
from collections.abc import Callable
from typing import TypeAlias

import asyncpg
import msgspec
import structlog

from server import failpoints
from server.db import UNAVAILABLE, Pool, acting_as
from server.tasks import snapshot
from server.tasks.snapshot import TaskChange
from server.tasks.state import OPEN, Complete, Fail, Outcome, Report, State, advance

log = structlog.get_logger()

Publish: TypeAlias = Callable[[TaskChange], None]
EXPIRED_A_STEP_MAX = 100
DELETE_TRIES_MAX = 5


class NoSuchTask(LookupError):
    """No row has this task id."""


class NoSuchUser(LookupError):
    """The caller is not among the users of this database (deleted, or of another project)."""


class Referenced(ValueError):
    """Rows of other tables of the database refer to the task, and do not go with it."""


class ParamsTooLarge(ValueError):
    """The parameters, as the database writes them, are larger than it takes (1e300 is written with 300 zeros)."""


class _Reopened(Exception):
    """The task did not stay as it was found."""


class Deleted(msgspec.Struct, frozen=True):
    """What a deleted task leaves elsewhere: its `result`, and messages at the provider that may still be under way."""

    result: str | None
    message_ids: list[str]


class TaskStore:
    """All writes to tasks. `publish` must not block; `deadline_seconds` is the time one run may take."""

    def __init__(self, pool: Pool, publish: Publish, *, public_url: str, deadline_seconds: float) -> None:
        self._pool = pool
        self._publish = publish
        self._public_url = public_url
        self._deadline_seconds = deadline_seconds

    async def create(
        self, claims: str, user_id: str, prompt: str, params: bytes, generator: str | None = None
    ) -> TaskChange:
        """Accept a task: row, first event and outgoing message in one transaction. `generator`: None is the default.

        Raises NoSuchUser and ParamsTooLarge.
        """
        task_id = secrets.token_urlsafe(16)
        try:
            async with acting_as(self._pool, claims) as connection:
                await connection.execute(
                    """insert into public.image_generations (task_id, user_id, prompt, params, generator, began_at)
                       values ($1, $2, $3, $4, $5, null)""",
                    task_id,
                    user_id,
                    prompt,
                    params.decode(),
                    generator,
                )
                (row,) = await connection.fetch("select * from taskbeam.changes where task_id = $1", task_id)
                await connection.execute("set local role service_role")  # the message is ours, not the user's
                await connection.execute("insert into taskbeam.dispatches (task_id, attempt) values ($1, 1)", task_id)
        except asyncpg.ForeignKeyViolationError:
            raise NoSuchUser from None
        except asyncpg.CheckViolationError as error:
            if error.constraint_name == "taskbeam_params":
                raise ParamsTooLarge from None
            raise
        failpoints.reached("task.committed")
        change = snapshot.from_row(row, self._public_url)
        self._publish(change)
        return change

    async def report(self, task_id: str, report: Report, *, jti: str | None = None) -> Outcome:
        """A generator has begun or moved on. `jti` is the id of the signed callback that says so: it counts once.

        Raises NoSuchTask.
        """
        row = await self._pool.fetchrow(
            """
            with seen as (
              insert into taskbeam.callbacks_seen (jti) select $10::text where $10 is not null
              on conflict do nothing returning jti
            ), changed as (
              update public.image_generations set
              status = 'processing',
              progress = case when $3 > delivery then $4 else coalesce($4, progress) end,
              message = case when $3 > delivery then $5 else coalesce($5, message) end,
              preview = case when $3 > delivery then $6 else coalesce($6, preview) end,
              step = case when $3 > delivery then $7 else coalesce($7, step) end,
              steps = case when $3 > delivery then $8 else coalesce($8, steps) end,
              delivery = coalesce($3, delivery),
              status_version = case when status = 'pending' then version + 1 else status_version end,
              version = version + 1,
              updated_at = clock_timestamp(),
              deadline_at = case when began_at is null then clock_timestamp() + $9 * interval '1 second'
                                 else deadline_at end,
              began_at = coalesce(began_at, clock_timestamp())
            where task_id = $1 and attempt = $2 and status in ('pending', 'processing')
              and coalesce($3::int, delivery) >= delivery
              and ($3 > delivery
                   or (($4::smallint is null or $4 >= coalesce(progress, 0))
                       and (status = 'pending'
                            or (coalesce($4, progress), coalesce($5, message), coalesce($6, preview),
                                coalesce($7, step), coalesce($8, steps))
                               is distinct from (progress, message, preview, step, steps))))
              and ($10 is null or exists (select from seen))
            returning version
            )
            select (select version from changed) as version, $10 is null or exists (select from seen) as fresh
            """,
            task_id,
            report.attempt,
            report.delivery,
            report.progress,
            report.message,
            report.preview,
            report.step,
            report.steps,
            self._deadline_seconds,
            jti,
        )
        return await self._counted(task_id, report, row)

    async def complete(self, task_id: str, change: Complete, *, jti: str | None = None) -> Outcome:
        """End the run with its result; `jti` as in report(). Raises NoSuchTask."""
        row = await self._pool.fetchrow(
            """
            with seen as (
              insert into taskbeam.callbacks_seen (jti) select $4::text where $4 is not null
              on conflict do nothing returning jti
            ), changed as (
              update public.image_generations set
                status = 'completed', result = $3, progress = 100, preview = null,
                version = version + 1, status_version = version + 1, updated_at = clock_timestamp()
              where task_id = $1 and attempt = $2 and status in ('pending', 'processing')
                and ($4 is null or exists (select from seen))
              returning version
            )
            select (select version from changed) as version, $4 is null or exists (select from seen) as fresh
            """,
            task_id,
            change.attempt,
            change.result,
            jti,
        )
        return await self._counted(task_id, change, row)

    async def fail(self, task_id: str, change: Fail, *, jti: str | None = None) -> Outcome:
        """End the run without a result; `jti` as in report(). Raises NoSuchTask."""
        row = await self._pool.fetchrow(
            """
            with seen as (
              insert into taskbeam.callbacks_seen (jti) select $6::text where $6 is not null
              on conflict do nothing returning jti
            ), changed as (
              update public.image_generations set
                status = 'failed', error = $3, error_code = $4, cancelled = $5, preview = null,
                version = version + 1, status_version = version + 1, updated_at = clock_timestamp()
              where task_id = $1 and attempt = $2 and status in ('pending', 'processing')
                and ($6 is null or exists (select from seen))
              returning version
            )
            select (select version from changed) as version, $6 is null or exists (select from seen) as fresh
            """,
            task_id,
            change.attempt,
            change.error,
            change.error_code,
            change.cancelled,
            jti,
        )
        return await self._counted(task_id, change, row)

    async def delete(self, claims: str, task_id: str) -> Deleted:
        """Take away a task of the caller's with its log and outgoing messages; a running one is cancelled first.

        So its followers see its end, and no generator need go on. Raises NoSuchTask and Referenced.
        """
        for _ in range(DELETE_TRIES_MAX):
            async with acting_as(self._pool, claims) as connection:
                found = await connection.fetchrow(
                    "select status::text, attempt from public.image_generations where task_id = $1", task_id
                )
            if found is None:
                raise NoSuchTask(task_id)
            if found["status"] in OPEN:
                await self.fail(
                    task_id,
                    Fail(attempt=found["attempt"], error="Cancelled", error_code="cancelled", cancelled=True),
                )
            with contextlib.suppress(_Reopened):
                return await self._delete(task_id)
        raise TimeoutError("it was retried each time it had been cancelled")

    async def _delete(self, task_id: str) -> Deleted:
        """Whose it is was asked before: a task never changes hands."""
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                messages = await connection.fetch(
                    "select message_id from taskbeam.dispatches where task_id = $1 and message_id is not null", task_id
                )
                row = await connection.fetchrow(
                    """delete from public.image_generations where task_id = $1 and status in ('completed', 'failed')
                       returning result""",
                    task_id,
                )
        except asyncpg.ForeignKeyViolationError:
            raise Referenced(task_id) from None
        if row is None:
            raise _Reopened  # a retry came in between, or it is gone
        unfinished = row["result"] is None
        return Deleted(row["result"], [message["message_id"] for message in messages] if unfinished else [])

    async def _counted(self, task_id: str, change: Report | Complete | Fail, row: asyncpg.Record | None) -> Outcome:
        assert row is not None  # noqa: S101  (the statements end in a select without a FROM)
        return await self._outcome(task_id, change, row["version"]) if row["fresh"] else "duplicate"

    async def _outcome(self, task_id: str, change: Report | Complete | Fail, version: int | None) -> Outcome:
        failpoints.reached("change.committed")
        if version is None:
            state = await self._state(task_id)
            verdict = advance(state, change)
            # It became possible since: whoever sends it again will find it applied.
            return verdict if isinstance(verdict, str) else "stale"
        await self._announce(task_id, version)
        return "applied"

    async def _announce(self, task_id: str, version: int) -> None:
        row = await self._pool.fetchrow(
            "select * from taskbeam.changes where task_id = $1 and version = $2", task_id, version
        )
        if row is not None:  # deleted meanwhile: nobody is left to be told
            self._publish(snapshot.from_row(row, self._public_url))

    async def _state(self, task_id: str) -> State:
        row = await self._pool.fetchrow(
            """select status::text, attempt, delivery, progress, message, preview, step, steps, result, error,
                      error_code, cancelled, version, status_version
                 from public.image_generations where task_id = $1""",
            task_id,
        )
        if row is None:
            raise NoSuchTask(task_id)
        return msgspec.convert(dict(row), State)

    async def is_cancelled(self, task_id: str, attempt: int) -> bool:
        """Whether this run need not go on: its task was cancelled, or a later attempt has replaced it."""
        row = await self._pool.fetchrow(
            "select cancelled, attempt from public.image_generations where task_id = $1", task_id
        )
        return row is None or row["cancelled"] or row["attempt"] > attempt

    async def is_open(self, task_id: str, attempt: int) -> bool:
        """Whether this run can still end; once it cannot, it never will."""
        row = await self._pool.fetchrow(
            "select status::text, attempt from public.image_generations where task_id = $1", task_id
        )
        return row is not None and row["attempt"] == attempt and row["status"] in OPEN

    async def result_of(self, task_id: str) -> str | None:
        """The result as it is stored."""
        result: str | None = await self._pool.fetchval(
            "select result from public.image_generations where task_id = $1", task_id
        )
        return result

    async def expire(self) -> int:
        """End the tasks whose deadline has passed, a bounded number; returns how many.

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
            """select task_id from public.image_generations
                where status in ('pending', 'processing') and deadline_at < now() order by deadline_at limit $1""",
            EXPIRED_A_STEP_MAX,
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
              select task_id from public.image_generations
               where status in ('pending', 'processing') and deadline_at < now() and ($2::text is null or task_id = $2)
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
        )
        for row in rows:
            log.warning("task_expired", task_id=row["task_id"], attempt=row["attempt"], reason=row["error_code"])
            await self._announce(row["task_id"], row["version"])
        return len(rows)
