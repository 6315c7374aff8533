"""Writes tasks: each change takes the next version of the row in the statement that makes it, guarded by its state.

The event row is appended by the schema in the same transaction (sql/003_log.sql). What comes in together is committed
together (commits.py). Whoever calls gets the outcome after the commit; the change is handed to `publish` then, in this
room and nowhere else, so that no caller can forget it. state.py says the same rules without SQL.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Literal, TypeAlias

import asyncpg
import msgspec

from server.db import ACQUIRE_TIMEOUT_SECONDS, Connection, Pool, acting_as
from server.tasks import snapshot
from server.tasks.accept import Accept, NewTask
from server.tasks.advance import Advance, Row, row_of
from server.tasks.commits import Commits
from server.tasks.ledger import Said
from server.tasks.snapshot import TaskChange
from server.tasks.state import OPEN, Complete, Fail, Outcome, Report
from server.tasks.tickets import Draft

Publish: TypeAlias = Callable[[TaskChange], None]
# open: the run can end. late: it cannot, but a result of it would be kept. over: nothing of it is wanted any more.
Standing: TypeAlias = Literal["open", "late", "over"]


class NoSuchTask(LookupError):
    """No row has this task id."""


class NoSuchUser(LookupError):
    """The caller is not among the users of this database (deleted, or of another project)."""


class Referenced(ValueError):
    """Rows of other tables of the database refer to the task, and do not go with it."""


class ParamsTooLarge(ValueError):
    """The parameters, as the database writes them, are larger than it takes (1e300 is written with 300 zeros)."""


class Deleted(msgspec.Struct, frozen=True):
    """What a deleted task leaves elsewhere: its `result`, and messages at the provider that may still be under way.

    `end` is how it ended, where it was running; it is for its followers, once the deletion is committed.
    """

    result: str | None
    message_ids: list[str]
    end: TaskChange | None


class TaskStore:
    """All writes to tasks. `publish` must not block; `deadline_seconds` is the time one run may take."""

    def __init__(self, pool: Pool, publish: Publish, *, public_url: str, deadline_seconds: float) -> None:
        self._pool = pool
        self._publish = publish
        self._public_url = public_url
        # Writes of one owner wait for each other in the database (sql/003_log.sql). However busy he is, they do not
        # hold all connections while they wait: readers, and what is committed and not yet published, get theirs.
        self._turns = asyncio.Semaphore(max(1, pool.get_max_size() // 2))
        accept = Accept(pool, publish, public_url=public_url)
        advance = Advance(pool, publish, public_url=public_url, deadline_seconds=deadline_seconds)
        self._creations: Commits[NewTask, TaskChange] = Commits(accept, self.turn)
        self._changes: Commits[Row, Outcome | None] = Commits(advance, self.turn)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The right to write. Raises TimeoutError where none is to be had, as the pool does."""
        async with asyncio.timeout(ACQUIRE_TIMEOUT_SECONDS):
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    async def create(
        self,
        claims: str,
        user_id: str,
        prompt: str,
        params: bytes,
        generator: str | None = None,
        ticket: Draft | None = None,
    ) -> TaskChange:
        """Accept a task: row, first event and outgoing message in one transaction, and a ticket for it if one is given.

        `generator`: None is the default. Raises NoSuchUser and ParamsTooLarge.
        """
        task_id = secrets.token_urlsafe(16)
        kept = (ticket.digest, ticket.caller.expires_at, ticket.lifetime_seconds) if ticket else (None, None, None)
        task = NewTask(claims, user_id, task_id, prompt, params.decode(), generator, *kept)
        try:
            return await self._creations.commit(task_id, task)
        except asyncpg.ForeignKeyViolationError:
            raise NoSuchUser from None
        except asyncpg.CheckViolationError as error:
            if error.constraint_name == "taskbeam_params":
                raise ParamsTooLarge from None
            raise

    async def report(self, task_id: str, report: Report, said: Said | None = None) -> Outcome:
        """A generator has begun or moved on. With `said` it is noted in the ledger. Raises NoSuchTask."""
        return await self._advance(task_id, report, said)

    async def complete(self, task_id: str, change: Complete, said: Said | None = None) -> Outcome:
        """End the run with its result; `said` as in report(). Too late for a task that has no result, it is kept.

        Raises NoSuchTask.
        """
        return await self._advance(task_id, change, said)

    async def fail(self, task_id: str, change: Fail, said: Said | None = None) -> Outcome:
        """End the run without a result; `said` as in report(). Raises NoSuchTask."""
        return await self._advance(task_id, change, said)

    async def _advance(self, task_id: str, change: Report | Complete | Fail, said: Said | None) -> Outcome:
        outcome = await self._changes.commit(task_id, row_of(task_id, change, said))
        if outcome is None:
            raise NoSuchTask(task_id)
        return outcome

    async def announce(self, task_id: str, version: int) -> None:
        """Hand a committed change to `publish`."""
        row = await self._pool.fetchrow(
            "select * from taskbeam.changes where task_id = $1 and version = $2", task_id, version
        )
        if row is not None:  # deleted meanwhile: nobody is left to be told
            self._publish(snapshot.from_row(row, self._public_url))

    async def delete(self, claims: str, task_id: str) -> Deleted:
        """Take away a task of the caller's with its log and outgoing messages; a running one is cancelled first.

        In one transaction, so that one that cannot be deleted goes on. How it ended is left for its followers, and no
        generator need go on. Raises NoSuchTask and Referenced.
        """
        async with acting_as(self._pool, claims) as connection:
            if not await connection.fetchval("select true from public.image_generations where task_id = $1", task_id):
                raise NoSuchTask(task_id)
        try:
            async with self.turn(), self._pool.acquire() as connection, connection.transaction():
                deleted = await self._delete(connection, task_id)
        except (asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError):
            raise Referenced(task_id) from None
        if deleted.end is not None:
            self._publish(deleted.end)
        return deleted

    async def _delete(self, connection: Connection, task_id: str) -> Deleted:
        """Whose it is was asked before: a task never changes hands."""
        version = await connection.fetchval(
            """update public.image_generations set
                 status = 'failed', error = 'Cancelled', error_code = 'cancelled', cancelled = true, preview = null,
                 version = version + 1, status_version = version + 1, updated_at = clock_timestamp()
               where task_id = $1 and status in ('pending', 'processing')
               returning version""",
            task_id,
        )
        end = None
        if version is not None:
            (row,) = await connection.fetch(
                "select * from taskbeam.changes where (task_id, version) = ($1, $2)", task_id, version
            )
            end = snapshot.from_row(row, self._public_url)
        messages = await connection.fetch(
            "select message_id from taskbeam.dispatches where task_id = $1 and message_id is not null", task_id
        )
        gone = await connection.fetch(
            "delete from public.image_generations where task_id = $1 returning result", task_id
        )
        if not gone:
            raise NoSuchTask(task_id)
        if end is not None:
            await connection.execute(
                "update taskbeam.deletions set last = $2 where task_id = $1 and xact = pg_current_xact_id()",
                task_id,
                end.body,
            )
        result: str | None = gone[0]["result"]
        return Deleted(result, [message["message_id"] for message in messages] if result is None else [], end)

    async def is_cancelled(self, task_id: str, attempt: int) -> bool:
        """Whether this run need not go on: its task was cancelled, or a later attempt has replaced it."""
        row = await self._pool.fetchrow(
            "select cancelled, attempt from public.image_generations where task_id = $1", task_id
        )
        return row is None or row["cancelled"] or row["attempt"] > attempt

    async def standing(self, task_id: str, attempt: int) -> Standing:
        """Whether this run can still end, or its result, too late, would be kept; once it is `over`, it always is."""
        row = await self._pool.fetchrow(
            """select status::text, attempt, exists (
                      select from public.task_deliveries d
                       where d.task_id = $1 and d.attempt = $2 and d.result is not null) as has_late_result
                 from public.image_generations where task_id = $1""",
            task_id,
            attempt,
        )
        if row is None or row["attempt"] < attempt or row["status"] == "completed":
            return "over"
        if row["attempt"] == attempt and row["status"] in OPEN:
            return "open"
        return "over" if row["has_late_result"] else "late"

    async def names(self, task_id: str, result: str) -> bool:
        """Whether the task, or its ledger, has this result, as it is stored."""
        found: bool = await self._pool.fetchval(
            """select exists (select from public.image_generations where task_id = $1 and result = $2)
                   or exists (select from public.task_deliveries where task_id = $1 and result = $2)""",
            task_id,
            result,
        )
        return found
