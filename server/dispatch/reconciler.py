"""Finds out what became of tasks without news: at the provider, whose message is the only other trace of a run.

A task past its deadline is looked up there and ends, with the reason. One that was handed on, and that nobody has
begun with, is looked up now and then, and is sent again where its message has vanished.

Any number of processes do this. A task is taken under a lease in Postgres, and the look is counted as it is taken;
whoever is too slow changes nothing, since a run ends once. What is looked up too often in vain is ended by
tasks/expiry.py.
"""

import asyncio
import contextlib
import time

import asyncpg
import structlog

from server import failpoints
from server.clock import Clock
from server.db import DATABASE_ERRORS, UNAVAILABLE, Pool
from server.dispatch import verdict
from server.dispatch.callback import CALLBACK_PATH
from server.dispatch.job import run_query
from server.dispatch.lookup import Away, Limited, Lookup
from server.dispatch.outbox import Outbox
from server.dispatch.settle import Settle
from server.dispatch.verdict import Apply, Asked, End, Resend, Verdict, Wait, judge
from server.generators import Generator
from server.metrics import Metrics
from server.settings import Settings
from server.tasks.expiry import LOOKUPS_MAX
from server.tasks.ledger import Said
from server.tasks.state import Fail
from server.tasks.store import NoSuchTask, TaskStore

log = structlog.get_logger()

PERIOD_SECONDS = 2.0
TAKEN_MAX = 100
PARALLELISM = 4  # a dead letter may carry a picture
LEASE_SECONDS = 60.0
WORK_SECONDS_MAX = 25.0
# Of an overdue task: 5 + 10 + 20 + 40 s, then it ends without having been asked about.
AWAY_TRIES_MAX = 5
AWAY_SECONDS = 5.0
WAIT_SECONDS = 30.0
SILENT_SECONDS_MAX = 900.0
CLEARED_A_STEP = 1_000
REFUSED_SECONDS = 3600.0


class _Silent(Away):
    """It was not asked, because it did not answer others a moment ago."""


class Reconciler:
    """`run()` until cancelled."""

    def __init__(
        self,
        pool: Pool,
        store: TaskStore,
        settle: Settle,
        outbox: Outbox,
        lookup: Lookup,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._store = store
        self._settle = settle
        self._outbox = outbox
        self._lookup = lookup
        self._generators = settings.generator_by_name
        self._callback_url = settings.callback_base + CALLBACK_PATH
        self._metrics = metrics
        self._asking = asyncio.Semaphore(PARALLELISM)
        self._failures = 0  # one after the other, of whatever task
        self._away_until = 0.0
        self._clock = Clock()

    async def run(self) -> None:
        failing = False
        while True:
            try:
                await self.step()
                failing = False
            except DATABASE_ERRORS as error:
                if not failing:
                    log.warning("reconciler_unavailable", reason=type(error).__name__)
                failing = True
            await asyncio.sleep(PERIOD_SECONDS)

    async def step(self) -> int:
        """Look up what is due, a bounded number; returns how many. Raises what the database raises."""
        if not self._clock.is_settled():
            return 0
        rows = await self._take()
        async with asyncio.TaskGroup() as looks:
            for row in rows:
                looks.create_task(self._look(row, time.monotonic()))
        await self._clear()
        return len(rows)

    async def _take(self) -> list[asyncpg.Record]:
        return await self._pool.fetch(
            """
            with overdue as (
              select d.task_id, d.attempt from public.image_generations t
                join taskbeam.dispatches d on (d.task_id, d.attempt) = (t.task_id, t.attempt)
               where t.status in ('pending', 'processing') and t.deadline_at < now() and d.lookups < $3
                 and (d.lookups = 0 or d.lookup_at is null or d.lookup_at <= now())
                 and (d.lookup_leased_until is null or d.lookup_leased_until < now())
                 and (d.leased_until is null or d.leased_until < now())
               order by t.deadline_at limit $1 for update of d skip locked
            ), silent as (
              select d.task_id, d.attempt from taskbeam.dispatches d
                join public.image_generations t on (t.task_id, t.attempt) = (d.task_id, d.attempt)
               where d.lookup_at <= now() and d.message_id is not null
                 and t.status = 'pending' and t.deadline_at >= now()
                 and (d.lookup_leased_until is null or d.lookup_leased_until < now())
               order by d.lookup_at limit $1 for update of d skip locked
            ), due as (
              select *, true as is_overdue from overdue union all select *, false from silent
            )
            update taskbeam.dispatches d
               set lookups = d.lookups + due.is_overdue::int, lookup_leased_until = now() + $2 * interval '1 second',
                   lookup_at = case when not due.is_overdue then d.lookup_at end
              from due join public.image_generations t using (task_id)
             where (d.task_id, d.attempt) = (due.task_id, due.attempt)
            returning d.task_id, d.attempt, d.message_id, d.lookups_failed, d.resends, due.is_overdue, t.generator,
                      t.began_at is not null as has_begun,
                      extract(epoch from now() - d.sent_at)::float8 as age_seconds,
                      exists (select from public.task_deliveries l
                               where l.task_id = d.task_id and l.attempt = d.attempt and l.kind = 'callback'
                                 and l.status between 200 and 299) as was_accepted
            """,
            TAKEN_MAX,
            LEASE_SECONDS,
            LOOKUPS_MAX,
        )

    async def _look(self, row: asyncpg.Record, taken_at: float) -> None:
        """Never raises: what breaks over one task must not hold up the others, and its lease runs out."""
        # Of this look's own asyncio task.
        structlog.contextvars.bind_contextvars(task_id=row["task_id"], attempt=row["attempt"])
        failpoints.reached("reconciler.taken")
        try:
            async with self._asking:
                if time.monotonic() - taken_at > LEASE_SECONDS - WORK_SECONDS_MAX:
                    return await self._give_back(row)
                async with asyncio.timeout(WORK_SECONDS_MAX):
                    await self._decide(row)
        except NoSuchTask:
            log.info("reconciled_no_task")
        except UNAVAILABLE as error:
            log.warning("not_reconciled", reason=type(error).__name__)
        except asyncpg.PostgresError as error:  # a rule of the app's own, say
            log.error("cannot_reconcile", reason=str(error))
            with contextlib.suppress(*DATABASE_ERRORS):
                await self._again(row, REFUSED_SECONDS, row["lookups_failed"])
        except Exception as error:
            log.error("look_broke", exc_info=error)
        return None

    async def _decide(self, row: asyncpg.Record) -> None:
        if row["message_id"] is None:
            return await self._act(row, verdict.NOT_SENT)
        try:
            found = await self._ask(row)
        except Away as error:
            failed = row["lookups_failed"] + 1
            # Of a thousand tasks the first is asked for and tells; the others learn of it.
            say = log.debug if isinstance(error, _Silent) else log.warning
            say("lookup_failed", failed=failed, reason=str(error))
            if row["is_overdue"] and failed >= AWAY_TRIES_MAX:
                return await self._act(row, verdict.UNREACHABLE)
            return await self._again(row, min(SILENT_SECONDS_MAX, AWAY_SECONDS * 2 ** min(failed - 1, 10)), failed)
        return await self._act(row, found)

    async def _ask(self, row: asyncpg.Record) -> Verdict:
        """Raises Away. Where it was away for all of late, the next ones are not made to wait for that."""
        if time.monotonic() < self._away_until:
            raise _Silent("it did not answer a moment ago")
        generator = self._generators.get(row["generator"])
        try:
            found = await self._lookup.find(row["message_id"], self._told_url(row, generator))
        except Away as error:
            self._failures += 1
            if isinstance(error, Limited):
                self._away_until = time.monotonic() + error.seconds
            elif self._failures >= PARALLELISM:
                self._away_until = time.monotonic() + AWAY_SECONDS
            raise
        self._failures = 0
        asked = Asked(
            is_overdue=row["is_overdue"], was_accepted=row["was_accepted"], resends=row["resends"], now=time.time()
        )
        return judge(found, asked)

    def _told_url(self, row: asyncpg.Record, generator: Generator | None) -> str | None:
        if generator is None:
            return None
        return f"{self._callback_url}?{run_query(generator, row['task_id'], row['attempt'])}"

    async def _act(self, row: asyncpg.Record, decided: Verdict) -> None:
        if decided is verdict.LATE and not row["has_begun"]:
            decided = verdict.NOT_BEGUN
        said = type(decided).__name__.lower()
        match decided:
            case Wait():
                seconds = WAIT_SECONDS if row["is_overdue"] else min(SILENT_SECONDS_MAX, max(60.0, row["age_seconds"]))
                return await self._again(row, seconds, 0)
            case Resend():
                await self._resend(row)
            case End():
                await self._end(row, decided)
            case Apply():
                await self._apply(row, decided)
        self._metrics.reconciled[said].inc()
        reason = decided.code if isinstance(decided, End) else None
        log.warning("reconciled", verdict=said, overdue=row["is_overdue"], reason=reason)
        return None

    async def _end(self, row: asyncpg.Record, end: End) -> None:
        failed = Fail(attempt=row["attempt"], error=end.error, error_code=end.code)
        await self._store.fail(row["task_id"], failed)
        if row["is_overdue"]:
            self._metrics.expired.inc()
        if row["message_id"] is not None:
            self._outbox.withdraw([row["message_id"]])

    async def _apply(self, row: asyncpg.Record, found: Apply) -> None:
        """What the generator answered; where that is no end (it accepted the job), its deadline is."""
        delivery, generator = found.delivery, self._generators.get(row["generator"])
        if generator is None:
            return await self._end(row, verdict.FAILED)
        said = Said(kind="lookup", status=delivery.status)
        await self._settle.settle(generator, row["task_id"], row["attempt"], delivery, said)
        if await self._store.standing(row["task_id"], row["attempt"]) != "open":
            return None
        if row["is_overdue"]:
            return await self._end(row, verdict.ACCEPTED)
        return await self._again(row, SILENT_SECONDS_MAX, 0)

    async def _resend(self, row: asyncpg.Record) -> None:
        """The outbox sends it anew, under the same deduplication id, and the time of its run counts anew."""
        await self._pool.execute(
            """with open as (
                 update public.image_generations t
                    set began_at = null, deadline_at = d.created_at + interval '1 day'
                   from taskbeam.dispatches d
                  where t.task_id = $1 and t.attempt = $2 and t.status = 'pending'
                    and (d.task_id, d.attempt) = (t.task_id, t.attempt) and d.resends = $3 and d.sent_at is not null
                 returning t.task_id
               )
               update taskbeam.dispatches d
                  set sent_at = null, next_at = now(), tries = 0, resends = d.resends + 1, lookups_failed = 0,
                      lookup_at = null, lookup_leased_until = null
                 from open where d.task_id = open.task_id and d.attempt = $2""",
            row["task_id"],
            row["attempt"],
            row["resends"],
        )
        self._outbox.poke()

    async def _again(self, row: asyncpg.Record, seconds: float, failed: int) -> None:
        await self._pool.execute(
            """update taskbeam.dispatches
                  set lookup_leased_until = null, lookup_at = now() + $3 * interval '1 second', lookups_failed = $4
                where task_id = $1 and attempt = $2""",
            row["task_id"],
            row["attempt"],
            seconds,
            failed,
        )

    async def _give_back(self, row: asyncpg.Record) -> None:
        """There was no time for it: it could become another's while it is asked about."""
        await self._pool.execute(
            """update taskbeam.dispatches set lookup_leased_until = null, lookups = lookups - $3
                where task_id = $1 and attempt = $2""",
            row["task_id"],
            row["attempt"],
            int(row["is_overdue"]),
        )

    async def _clear(self) -> None:
        """Forget to look up what somebody has begun with, or what has ended."""
        await self._pool.execute(
            """with begun as (
                 select d.task_id, d.attempt from taskbeam.dispatches d
                   left join public.image_generations t
                     on (t.task_id, t.attempt) = (d.task_id, d.attempt) and t.status = 'pending'
                  where d.lookup_at <= now() and t.task_id is null
                  order by d.lookup_at limit $1 for update of d skip locked
               )
               update taskbeam.dispatches d set lookup_at = null
                 from begun where (d.task_id, d.attempt) = (begun.task_id, begun.attempt)""",
            CLEARED_A_STEP,
        )
