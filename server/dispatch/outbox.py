"""Drains the outgoing messages to a QStash API: Upstash's, or our own dispatcher's, with the same SDK.

A message was written in the transaction that created its task, so a task that was accepted is sent, whatever
dies. Senders take messages under a lease and count the try as they take it; sending twice is harmless, since the
deduplication id names task and attempt.
"""

import asyncio
import functools
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import asyncpg
import msgspec
import structlog
from qstash import AsyncQStash
from qstash.errors import QStashError
from qstash.message import Redact

from server import failpoints
from server.db import DATABASE_ERRORS, Pool
from server.dispatch import retry
from server.dispatch.callback import CALLBACK_PATH
from server.dispatch.job import Addresses, Job, compose, run_query
from server.dispatch.message import OUR_ID
from server.generators import Generator
from server.health import QStash
from server.metrics import Metrics
from server.settings import Settings
from server.tasks.state import Fail
from server.tasks.store import TaskStore

log = structlog.get_logger()

POLL_SECONDS = 1.0
LEASE_SECONDS = 30.0
PUBLISH_SECONDS_MAX = 10.0
PARALLELISM = 16
RETRY_SECONDS_MAX = 60.0
REASON_CHARACTERS_MAX = 500
UNKNOWN_TRIES_MAX = 8
WITHDRAWALS_MAX = 100
# A message that nobody has begun with for so long is looked up at the provider; after each resending twice as long.
SILENT_SECONDS = 120.0

# A callback that cannot be taken now (we are being deployed) is the only news of a finished picture. Upstash
# allows few retries, by plan: those are stretched. Elsewhere it is tried for ten minutes, closely at first.
# And taking one is quick: a process that hangs must not hold it for as long as a generator may take.
HOSTED = {"Timeout": "20s", "Retry-Delay": "5000 * pow(4, retried)"}
PATIENT = {"Timeout": "20s", "Retries": "60", "Retry-Delay": "min(10000, 500 * pow(2, retried))"}


class Refused(Exception):
    """The API will never take this message; the message is its reason."""


class Outbox:
    """`poke()` when a message was committed; `run()` until cancelled."""

    def __init__(
        self, pool: Pool, store: TaskStore, client: AsyncQStash, settings: Settings, secret: bytes, metrics: Metrics
    ) -> None:
        self._pool = pool
        self._store = store
        self._settings = settings
        self._generators = settings.generator_by_name
        self._base_url = settings.callback_base
        self._here = Addresses(settings.callback_base, settings.webhook_base, secret)
        self._metrics = metrics
        self._client = client
        self._callback_options = HOSTED if is_hosted(settings.qstash_url) else PATIENT
        self._poked = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._withdrawing: set[asyncio.Task[None]] = set()
        self.qstash: QStash = "unknown"  # whether it took the last message

    def poke(self) -> None:
        self._poked.set()

    async def run(self) -> None:
        """A message that takes long holds up no other: each is taken when there is a sender for it."""
        failing = False
        try:
            while True:
                self._poked.clear()
                try:
                    await self._step()
                    failing = False
                except DATABASE_ERRORS as error:
                    if not failing:
                        log.warning("outbox_unavailable", reason=type(error).__name__)
                    failing = True
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._poked.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._sending | self._withdrawing:
                task.cancel()
            await asyncio.gather(*self._sending, *self._withdrawing, return_exceptions=True)

    def withdraw(self, message_ids: Sequence[str]) -> None:
        """Ask the API to deliver these no more, their runs are over. A courtesy: a late callback changes nothing."""
        for message_id in message_ids[: WITHDRAWALS_MAX - len(self._withdrawing)]:
            task = asyncio.create_task(self._withdraw(message_id))
            self._withdrawing.add(task)
            task.add_done_callback(self._withdrawing.discard)

    async def _withdraw(self, message_id: str) -> None:
        try:
            async with asyncio.timeout(PUBLISH_SECONDS_MAX):
                await self._client.message.cancel(message_id)
        except Exception as error:  # it is done already, most of the time
            log.info("not_withdrawn", message_id=message_id, reason=_printable(f"{type(error).__name__}: {error}"))
        else:
            log.info("withdrawn", message_id=message_id)

    async def _step(self) -> None:
        free = PARALLELISM - len(self._sending)
        if free <= 0:
            return
        for row in await self._take(free):
            failpoints.reached("dispatch.taken")
            task = asyncio.create_task(self._send(row))
            self._sending.add(task)
            task.add_done_callback(functools.partial(self._ended, row["task_id"], row["attempt"]))

    def _ended(self, task_id: str, attempt: int, task: "asyncio.Task[None]") -> None:
        self._sending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Its lease runs out, and it is sent again.
            error = task.exception()
            reason, defect = type(error).__name__, _defect(error)
            log.warning("dispatch_broke", task_id=task_id, attempt=attempt, reason=reason, exc_info=defect)
        self._poked.set()

    async def _take(self, count: int) -> list[asyncpg.Record]:
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
            returning d.task_id, d.attempt, d.tries, t.prompt, t.params, t.generator,
                      t.attempt > d.attempt or t.status::text in ('completed', 'failed') as over
            """,
            count,
            LEASE_SECONDS,
        )

    async def _send(self, row: asyncpg.Record) -> None:
        task_id, attempt = row["task_id"], row["attempt"]
        structlog.contextvars.bind_contextvars(task_id=task_id, attempt=attempt)  # of this message's own asyncio task
        if row["over"]:
            return await self._sent(task_id, attempt, None)
        try:
            message_id = await self._publish(row)
        except Refused as error:
            log.error("dispatch_refused", reason=str(error))
            self._metrics.dispatched["refused"].inc()
            reason = f"The job could not be handed on: {error}"
            await self._store.fail(task_id, Fail(attempt=attempt, error=reason, error_code="dispatch_refused"))
            return await self._sent(task_id, attempt, None)
        except Exception as error:  # whatever a client library makes of a strange answer
            self._metrics.dispatched["failed"].inc()
            return await self._again(task_id, attempt, row["tries"], error)
        failpoints.reached("dispatch.published")
        self._metrics.dispatched["sent"].inc()
        log.info("dispatched", message_id=message_id)
        await self._sent(task_id, attempt, message_id)
        failpoints.reached("dispatch.sent")
        return None

    async def _publish(self, row: asyncpg.Record) -> str:
        task_id, attempt, settings = row["task_id"], row["attempt"], self._settings
        generator = self._generator(row)
        params = msgspec.json.decode(row["params"])
        job = compose(generator, task_id, attempt, row["prompt"], params, self._here)
        callback = f"{self._base_url}{CALLBACK_PATH}?{run_query(generator, task_id, attempt)}"
        try:
            async with asyncio.timeout(PUBLISH_SECONDS_MAX):
                published = await self._client.message.publish(
                    url=job.url,
                    body=job.body,
                    content_type="application/json",
                    headers=job.headers,
                    redact=_redact(job),
                    retries=settings.generator_retries,
                    retry_delay=settings.generator_retry_delay_ms,
                    timeout=f"{settings.generator_timeout_seconds:.0f}s",
                    callback=callback,
                    failure_callback=callback,
                    callback_headers=self._callback_options,
                    failure_callback_headers=self._callback_options,
                    deduplication_id=f"{task_id}-{attempt}",
                )
        except QStashError as error:
            status = re.match(r"Request failed with status: (\d{3})", str(error))
            # 401 and 403 are for the operator to mend, and 408 will pass; the rest is about this very message.
            if status and status[1].startswith("4") and status[1] not in ("401", "403", "404", "408", "429"):
                self.qstash = "up"
                raise Refused(_printable(generator.without_secrets(str(error)))) from error
            self.qstash = "down"
            raise
        except Exception:
            self.qstash = "down"
            raise
        self.qstash = "up"
        if isinstance(published, list):
            raise Refused("the generator's URL is a URL group")
        return published.message_id

    def _generator(self, row: asyncpg.Record) -> Generator:
        generator = self._generators.get(row["generator"])
        if generator is None and row["tries"] >= UNKNOWN_TRIES_MAX:
            raise Refused(f"this server has no generator {row['generator']!r} any more")
        if generator is None:
            # While versions change, the next process to take it may know it.
            raise LookupError(f"no generator {row['generator']!r} here")
        return generator

    async def _sent(self, task_id: str, attempt: int, message_id: str | None) -> None:
        wanted = await self._pool.fetchval(
            """update taskbeam.dispatches d
                  set sent_at = now(), leased_until = null, message_id = $3, last_error = null,
                      lookup_at = case when $3::text is not null
                                       then now() + $4 * power(2, resends) * interval '1 second' end
                where task_id = $1 and attempt = $2
               returning exists (select from public.image_generations t where t.task_id = d.task_id
                                    and t.attempt = d.attempt and t.status in ('pending', 'processing'))""",
            task_id,
            attempt,
            message_id,
            SILENT_SECONDS,
        )
        if message_id is not None and not wanted:
            self.withdraw([message_id])  # it was cancelled or deleted meanwhile
        if message_id is not None and not message_id.startswith(OUR_ID):
            # Our own dispatcher says when it begins, and a run's time counts from there; others do not.
            await self._pool.execute(
                """update public.image_generations
                      set began_at = now(), deadline_at = now() + $3 * interval '1 second'
                    where task_id = $1 and attempt = $2 and began_at is null
                      and status in ('pending', 'processing')""",
                task_id,
                attempt,
                self._settings.task_deadline_seconds + self._retry_seconds(),
            )

    def _retry_seconds(self) -> float:
        delay = retry.parse_delay(self._settings.generator_retry_delay_ms)
        return sum(delay(retried) for retried in range(self._settings.generator_retries)) / 1000

    async def _again(self, task_id: str, attempt: int, tries: int, error: Exception) -> None:
        reason = _printable(f"{type(error).__name__}: {error}")
        log.warning("dispatch_failed", tries=tries, reason=reason)
        await self._pool.execute(
            """update taskbeam.dispatches set leased_until = null, last_error = $4,
                      next_at = now() + $3 * interval '1 second'
                where task_id = $1 and attempt = $2""",
            task_id,
            attempt,
            min(RETRY_SECONDS_MAX, 0.5 * 2 ** min(tries, 10)),
            reason,
        )


def _redact(job: Job) -> Redact:
    if job.hides_body:
        return Redact(header=job.hidden_headers, body=True)
    return Redact(header=job.hidden_headers)


def is_hosted(qstash_url: str | None) -> bool:
    """Whether this is Upstash's own service, with the limits of its plans."""
    host = (urlsplit(qstash_url).hostname or "") if qstash_url else "qstash.upstash.io"
    return host == "upstash.io" or host.endswith(".upstash.io")


def _printable(text: str) -> str:
    """What somebody else's server said, as one short line that Postgres and a log can hold."""
    return "".join(c if c.isprintable() else " " for c in text[:REASON_CHARACTERS_MAX])


def _defect(error: BaseException | None) -> BaseException | None:
    return None if isinstance(error, DATABASE_ERRORS) else error
