"""The dispatcher's messages in Postgres: published, claimed under a lease, finished by whoever still holds them.

The states and what they mean are in sql/002_dispatcher.sql. A message's callbacks are written in the transaction
that records the delivery they tell of.
"""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from server.db import Connection, Pool
from server.dispatch import subject
from server.dispatch.delivery import Answer, Parcel
from server.dispatch.message import OUR_ID, CallbackBody, Draft

LEASE_SECONDS = 5.0
RENEWAL_SECONDS_MAX = 1.5
REAPED_A_STEP = 20
CLEANED_A_STEP = 5_000


class Claimed(msgspec.Struct, frozen=True):
    """A message held under a lease: `fence` proves it; `deliveries` counts this one."""

    id: str
    fence: int
    kind: str
    url: str
    method: str
    header: dict[str, list[str]]
    body: bytes
    max_retries: int
    retry_delay: str | None
    timeout_ms: int
    callback: str | None
    failure_callback: str | None
    callback_options: dict[str, Any]
    failure_callback_options: dict[str, Any]
    redact: list[str]
    caller_ip: str
    deliveries: int
    not_before_ms: int
    created_at_ms: int

    @property
    def is_callback(self) -> bool:
        return self.kind != "message"

    @property
    def subject(self) -> subject.Subject:
        return subject.of_callback(self.url) if self.is_callback else subject.of_job(self.header)

    @property
    def parcel(self) -> Parcel:
        return Parcel(
            self.id,
            self.url,
            self.method,
            self.header,
            self.body,
            self.timeout_ms / 1000,
            self.deliveries - 1,
            self.caller_ip,
        )

    @property
    def exhausted(self) -> bool:
        return self.deliveries > self.max_retries


def new_id() -> str:
    return OUR_ID + secrets.token_hex(16)


class Messages:
    """All statements of the dispatcher. What has ended is kept for some days, None for ever."""

    def __init__(self, pool: Pool, *, kept_days: float | None, dead_letters_kept_days: float | None) -> None:
        self._pool = pool
        self._kept_days = kept_days
        self._dead_letters_kept_days = dead_letters_kept_days

    async def publish(self, draft: Draft, caller_ip: str) -> tuple[str, bool]:
        """Store the message; the id, and whether an earlier one with its deduplication id stands for it."""
        key = _deduplication_key(draft)
        message_id = new_id()
        async with self._pool.acquire() as connection, connection.transaction():
            if key is not None:
                first = await connection.fetchval(
                    """insert into dispatcher.deduplications as d (id, message_id) values ($1, $2)
                       on conflict (id) do update set
                         message_id = case when d.expires_at < now() then excluded.message_id else d.message_id end,
                         expires_at = case when d.expires_at < now() then excluded.expires_at else d.expires_at end
                       returning message_id""",
                    key,
                    message_id,
                )
                if first != message_id:
                    return first, True
            await _insert(connection, message_id, draft, caller_ip=caller_ip)
        return message_id, False

    async def claim(self, count: int, callbacks: int) -> list[Claimed]:
        """Take up to `count` due messages and `callbacks` due callbacks under a lease; the delivery counts from now."""
        rows = await self._pool.fetch(
            """
            with jobs as (
              select id from dispatcher.messages
               where state in ('created', 'retry') and kind = 'message' and due_at <= now()
               order by due_at, id limit $1 for update skip locked
            ), callbacks as (
              select id from dispatcher.messages
               where state in ('created', 'retry') and kind <> 'message' and due_at <= now()
               order by due_at, id limit $2 for update skip locked
            ), due as (select id from jobs union all select id from callbacks)
            update dispatcher.messages m set state = 'active', deliveries = m.deliveries + 1, fence = m.fence + 1,
                   leased_until = now() + $3 * interval '1 second'
              from due where m.id = due.id
            returning m.id, m.fence, m.kind, m.url, m.method, m.header, m.body, m.max_retries, m.retry_delay,
                      m.timeout_ms, m.callback, m.failure_callback, m.callback_options, m.failure_callback_options,
                      m.redact, m.caller_ip, m.deliveries,
                      (extract(epoch from m.not_before) * 1000)::bigint as not_before_ms,
                      (extract(epoch from m.created_at) * 1000)::bigint as created_at_ms
            """,
            count,
            callbacks,
            LEASE_SECONDS,
        )
        return [_claimed(row) for row in rows]

    async def renew(self, held: Sequence[Claimed]) -> set[str]:
        """Prolong the leases of all that is held; the ids of those that still are. Raises TimeoutError early."""
        async with asyncio.timeout(RENEWAL_SECONDS_MAX):
            rows = await self._pool.fetch(
                """update dispatcher.messages m set leased_until = now() + $3 * interval '1 second'
                     from unnest($1::text[], $2::bigint[]) as h (id, fence)
                    where m.id = h.id and m.fence = h.fence and m.state = 'active' returning m.id""",
                [message.id for message in held],
                [message.fence for message in held],
                LEASE_SECONDS,
            )
        return {row["id"] for row in rows}

    async def hand_back(self, held: Sequence[Claimed]) -> None:
        """Give up what was not delivered, at once due again and not counted, and tell the others."""
        await self._pool.execute(
            """with given as (
                 update dispatcher.messages m set deliveries = m.deliveries - 1, leased_until = null, due_at = now(),
                        state = case when m.deliveries > 1 then 'retry' else 'created' end::dispatcher.message_state
                   from unnest($1::text[], $2::bigint[]) as h (id, fence)
                  where m.id = h.id and m.fence = h.fence and m.state = 'active' returning 1)
               select pg_notify('dispatcher', '') from (select count(*) from given) as counted""",
            [message.id for message in held],
            [message.fence for message in held],
        )

    async def delivered(self, message: Claimed, answer: Answer) -> bool:
        """The destination took it. False: somebody else holds it, or it was canceled."""
        async with self._pool.acquire() as connection, connection.transaction():
            held = await connection.fetchval(
                """update dispatcher.messages set state = 'delivered', leased_until = null, finished_at = now(),
                          response_status = $3 where id = $1 and fence = $2 and state = 'active' returning true""",
                message.id,
                message.fence,
                answer.status,
            )
            if held:
                await _call_back(connection, message, answer, None)
        return bool(held)

    async def retry_later(self, message: Claimed, answer: Answer, seconds: float) -> bool:
        """The delivery failed; the next one is due in `seconds`."""
        async with self._pool.acquire() as connection, connection.transaction():
            held = await connection.fetchval(
                """update dispatcher.messages set state = 'retry', leased_until = null, response_status = $3,
                          due_at = now() + $4 * interval '1 second'
                    where id = $1 and fence = $2 and state = 'active' returning true""",
                message.id,
                message.fence,
                answer.status,
                seconds,
            )
            if held:
                await _call_back(connection, message, answer, None)
        return bool(held)

    async def failed(self, message: Claimed, answer: Answer) -> bool:
        """The last delivery failed: a dead letter, and the failure callback."""
        dlq_id = f"{message.created_at_ms}-{secrets.randbelow(10**9)}"
        async with self._pool.acquire() as connection, connection.transaction():
            held = await connection.fetchval(
                """update dispatcher.messages set state = 'failed', leased_until = null, finished_at = now(),
                          dlq_id = $3, response_status = $4, response_header = $5, response_body = $6
                    where id = $1 and fence = $2 and state = 'active' returning true""",
                message.id,
                message.fence,
                dlq_id,
                answer.status,
                msgspec.json.encode(answer.header).decode(),
                answer.body,
            )
            if held:
                await _call_back(connection, message, answer, dlq_id)
        return bool(held)

    async def expired(self) -> list[Claimed]:
        """Take over messages whose holder let the lease run out, without counting a delivery."""
        rows = await self._pool.fetch(
            """
            with lost as (
              select id from dispatcher.messages where state = 'active' and leased_until < now()
               order by leased_until limit $2 for update skip locked
            )
            update dispatcher.messages m set fence = m.fence + 1, leased_until = now() + $1 * interval '1 second'
              from lost where m.id = lost.id
            returning m.id, m.fence, m.kind, m.url, m.method, m.header, m.body, m.max_retries, m.retry_delay,
                      m.timeout_ms, m.callback, m.failure_callback, m.callback_options, m.failure_callback_options,
                      m.redact, m.caller_ip, m.deliveries,
                      (extract(epoch from m.not_before) * 1000)::bigint as not_before_ms,
                      (extract(epoch from m.created_at) * 1000)::bigint as created_at_ms
            """,
            LEASE_SECONDS,
            REAPED_A_STEP,
        )
        return [_claimed(row) for row in rows]

    async def cancel(self, message_id: str) -> bool:
        """End a message that is not finished; whoever delivers it now finds out with its next renewal."""
        found = await self._pool.fetchval(
            """update dispatcher.messages set state = 'canceled', leased_until = null, finished_at = now()
                where id = $1 and state in ('created', 'active', 'retry') returning true""",
            message_id,
        )
        return bool(found)

    async def cancel_many(self, ids: Sequence[str] | None) -> int:
        """cancel() for each of `ids`, or for all messages; how many it ended."""
        count: int = await self._pool.fetchval(
            """with ended as (
                 update dispatcher.messages set state = 'canceled', leased_until = null, finished_at = now()
                  where state in ('created', 'active', 'retry') and ($1::text[] is null or id = any ($1))
                 returning 1)
               select count(*) from ended""",
            None if ids is None else list(ids),
        )
        return count

    async def clean_up(self) -> None:
        """Drop what ended long enough ago, and expired deduplication ids, a bounded number of each."""
        for states, days in (
            (["delivered", "canceled"], self._kept_days),
            (["failed"], self._dead_letters_kept_days),
        ):
            if days is not None:
                await self._pool.execute(
                    """delete from dispatcher.messages where id in (
                         select id from dispatcher.messages
                          where state in ('delivered', 'failed', 'canceled') and state::text = any ($1)
                            and finished_at < now() - $2 * interval '1 day'
                          order by finished_at limit $3)""",
                    states,
                    days,
                    CLEANED_A_STEP,
                )
        await self._pool.execute(
            """delete from dispatcher.deduplications where id in (
                 select id from dispatcher.deduplications where expires_at < now() order by expires_at limit $1)""",
            CLEANED_A_STEP,
        )


def _claimed(row: asyncpg.Record) -> Claimed:
    fields = dict(row)
    for name in ("header", "callback_options", "failure_callback_options"):
        fields[name] = msgspec.json.decode(fields[name])
    return Claimed(**fields)


def _deduplication_key(draft: Draft) -> str | None:
    if draft.deduplication_id:
        return f"id:{draft.deduplication_id}"
    if not draft.content_deduplication:
        return None
    parts = (draft.url.encode(), draft.body, msgspec.json.encode(draft.header, order="deterministic"))
    return "content:" + hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


async def _insert(
    connection: Connection,
    message_id: str,
    draft: Draft,
    *,
    caller_ip: str = "",
    kind: str = "message",
    source_id: str | None = None,
) -> None:
    await connection.execute(
        """insert into dispatcher.messages (id, kind, source_id, url, method, header, body, max_retries, retry_delay,
             timeout_ms, callback, failure_callback, callback_options, failure_callback_options, redact, labels,
             caller_ip, not_before, due_at)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
             coalesce(to_timestamp($18::float8), now() + $19 * interval '1 second'),
             coalesce(to_timestamp($18::float8), now() + $19 * interval '1 second'))""",
        message_id,
        kind,
        source_id,
        draft.url,
        draft.method,
        msgspec.json.encode(draft.header).decode(),
        draft.body,
        draft.max_retries,
        draft.retry_delay,
        max(1, int(draft.timeout_seconds * 1000)),
        draft.callback,
        draft.failure_callback,
        msgspec.json.encode(draft.callback_options).decode(),
        msgspec.json.encode(draft.failure_callback_options).decode(),
        draft.redact,
        draft.labels,
        caller_ip,
        draft.not_before,
        draft.delay_seconds,
    )


async def _call_back(connection: Connection, message: Claimed, answer: Answer, dlq_id: str | None) -> None:
    """Write the callback that follows every delivery, and on exhaustion (`dlq_id`) the failure callback too."""
    if message.kind != "message":
        return
    for kind, url, options in (
        ("callback", message.callback, message.callback_options),
        ("failure_callback", dlq_id and message.failure_callback, message.failure_callback_options),
    ):
        if not url:
            continue
        draft = Draft(
            url=url,
            redact=["body"] if message.redact else [],  # it repeats the message
            **{
                "max_retries": message.max_retries,
                "retry_delay": message.retry_delay,
                **options,
                "header": {"Content-Type": ["application/json"], **options.get("header", {})},
                "body": _callback_body(message, answer, dlq_id if kind == "failure_callback" else None),
            },
        )
        await _insert(connection, new_id(), draft, caller_ip=message.caller_ip, kind=kind, source_id=message.id)


def _callback_body(message: Claimed, answer: Answer, dlq_id: str | None) -> bytes:
    report = CallbackBody(
        status=answer.status,
        header=answer.header,
        body=base64.b64encode(answer.body).decode(),
        retried=message.deliveries - 1,
        max_retries=message.max_retries,
        source_message_id=message.id,
        url=message.url,
        method=message.method,
        source_header=message.header,
        source_body=base64.b64encode(message.body).decode(),
        not_before=message.not_before_ms,
        created_at=message.created_at_ms,
        caller_ip=message.caller_ip,
        dlq_id=dlq_id,
    )
    return msgspec.json.encode(report)
