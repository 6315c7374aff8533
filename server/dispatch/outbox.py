"""Drains the outgoing messages to a QStash API: Upstash's, or our own dispatcher's, with the same SDK.

A message was written in the transaction that created its task, so a task that was accepted is sent, whatever
dies. Senders take messages under a lease and count the try as they take it; sending twice is harmless, since the
deduplication id names task and attempt.
"""

import asyncio
import re
from urllib.parse import quote

import asyncpg
import httpx
import msgspec
import structlog
from qstash import AsyncQStash
from qstash.errors import QStashError

from server import failpoints
from server.db import DATABASE_ERRORS, Pool
from server.dispatch import retry
from server.dispatch.callback import CALLBACK_PATH
from server.dispatch.token import make_token
from server.metrics import Metrics
from server.settings import Settings
from server.tasks.state import Fail
from server.tasks.store import TaskStore

log = structlog.get_logger()

PROGRESS_PATH = "/api/generate/progress"
POLL_SECONDS = 1.0
LEASE_SECONDS = 30.0
PUBLISH_SECONDS_MAX = 10.0
MESSAGES_A_STEP = 50
PARALLELISM = 16
RETRY_SECONDS_MAX = 60.0


class Refused(Exception):
    """The API will never take this message; the message is its reason."""


class Outbox:
    """`poke()` when a message was committed; `run()` until cancelled."""

    def __init__(self, pool: Pool, store: TaskStore, settings: Settings, secret: bytes, metrics: Metrics) -> None:
        self._pool = pool
        self._store = store
        self._settings = settings
        self._base_url = settings.callback_base
        self._secret = secret
        self._metrics = metrics
        self._client = AsyncQStash(settings.qstash_token or "", base_url=settings.qstash_url, retry=False)
        self._poked = asyncio.Event()
        self._slots = asyncio.Semaphore(PARALLELISM)

    def poke(self) -> None:
        self._poked.set()

    async def run(self) -> None:
        failing = False
        while True:
            self._poked.clear()
            taken = 0
            try:
                rows = await self._take()
                taken = len(rows)
                await asyncio.gather(*map(self._send, rows))
                failing = False
            except DATABASE_ERRORS as error:
                if not failing:
                    log.warning("outbox_unavailable", reason=type(error).__name__)
                failing = True
            if taken < MESSAGES_A_STEP:
                try:
                    await asyncio.wait_for(self._poked.wait(), POLL_SECONDS)
                except TimeoutError:
                    continue

    async def _take(self) -> list[asyncpg.Record]:
        return await self._pool.fetch(
            """
            with due as (
              select task_id, attempt from taskbeam.dispatches
               where sent_at is null and next_at <= now() and (leased_until is null or leased_until < now())
               order by next_at limit $1 for update skip locked
            )
            update taskbeam.dispatches d set tries = d.tries + 1, leased_until = now() + $2 * interval '1 second'
              from due join public.image_generations t using (task_id)
             where d.task_id = due.task_id and d.attempt = due.attempt
            returning d.task_id, d.attempt, d.tries, t.prompt, t.params,
                      t.attempt > d.attempt or t.status::text in ('completed', 'failed') as over
            """,
            MESSAGES_A_STEP,
            LEASE_SECONDS,
        )

    async def _send(self, row: asyncpg.Record) -> None:
        task_id, attempt = row["task_id"], row["attempt"]
        async with self._slots:
            if row["over"]:
                return await self._sent(task_id, attempt, None)
            try:
                message_id = await self._publish(row)
            except Refused as error:
                log.error("dispatch_refused", task_id=task_id, reason=str(error))
                self._metrics.dispatched.labels("refused").inc()
                reason = f"The job could not be handed on: {error}"[:2000]
                await self._store.fail(task_id, Fail(attempt=attempt, error=reason, error_code="dispatch_refused"))
                return await self._sent(task_id, attempt, None)
            except (QStashError, httpx.HTTPError, OSError, TimeoutError) as error:
                self._metrics.dispatched.labels("failed").inc()
                return await self._again(task_id, attempt, row["tries"], error)
            failpoints.reached("dispatch.published")
            self._metrics.dispatched.labels("sent").inc()
            log.info("dispatched", task_id=task_id, attempt=attempt, message_id=message_id)
            return await self._sent(task_id, attempt, message_id)

    async def _publish(self, row: asyncpg.Record) -> str:
        task_id, attempt, settings = row["task_id"], row["attempt"], self._settings
        callback = f"{self._base_url}{CALLBACK_PATH}?task={quote(task_id)}&attempt={attempt}"
        body = {**msgspec.json.decode(row["params"]), "prompt": row["prompt"]}
        try:
            async with asyncio.timeout(PUBLISH_SECONDS_MAX):
                published = await self._client.message.publish(
                    url=settings.generator_url,
                    body=msgspec.json.encode(body),
                    content_type="application/json",
                    headers={
                        "Taskbeam-Task-Id": task_id,
                        "Taskbeam-Attempt": str(attempt),
                        "Taskbeam-Progress-Url": self._base_url + PROGRESS_PATH,
                        "Taskbeam-Progress-Token": make_token(self._secret, task_id, attempt),
                    },
                    redact={"header": ["Taskbeam-Progress-Token"]},
                    retries=settings.generator_retries,
                    retry_delay=settings.generator_retry_delay_ms,
                    timeout=f"{settings.generator_timeout_seconds:.0f}s",
                    callback=callback,
                    failure_callback=callback,
                    deduplication_id=f"{task_id}-{attempt}",
                )
        except QStashError as error:
            status = re.match(r"Request failed with status: (\d{3})", str(error))
            # 401 and 403 are for the operator to mend, and 408 will pass; the rest is about this very message.
            if status and status[1].startswith("4") and status[1] not in ("401", "403", "404", "408", "429"):
                raise Refused(str(error)[:500]) from error
            raise
        if isinstance(published, list):
            raise Refused("the generator's URL is a URL group")
        return published.message_id

    async def _sent(self, task_id: str, attempt: int, message_id: str | None) -> None:
        await self._pool.execute(
            """update taskbeam.dispatches set sent_at = now(), leased_until = null, message_id = $3, last_error = null
                where task_id = $1 and attempt = $2""",
            task_id,
            attempt,
            message_id,
        )
        if message_id is not None:
            # Our own dispatcher says when it begins, and a run's time counts from there; others do not.
            await self._pool.execute(
                """update public.image_generations set deadline_at = now() + $3 * interval '1 second'
                    where task_id = $1 and attempt = $2 and deadline_at is null and status in ('pending', 'processing')
                      and not exists (select from dispatcher.messages m where m.id = $4)""",
                task_id,
                attempt,
                self._settings.task_deadline_seconds + self._retry_seconds(),
                message_id,
            )

    def _retry_seconds(self) -> float:
        delay = retry.parse_delay(self._settings.generator_retry_delay_ms)
        return sum(delay(retried) for retried in range(self._settings.generator_retries)) / 1000

    async def _again(self, task_id: str, attempt: int, tries: int, error: Exception) -> None:
        log.warning("dispatch_failed", task_id=task_id, tries=tries, reason=f"{type(error).__name__}: {error}")
        await self._pool.execute(
            """update taskbeam.dispatches set leased_until = null, last_error = left($4, 2000),
                      next_at = now() + $3 * interval '1 second'
                where task_id = $1 and attempt = $2""",
            task_id,
            attempt,
            min(RETRY_SECONDS_MAX, 0.5 * 2 ** min(tries, 10)),
            f"{type(error).__name__}: {error}",
        )
