"""The dispatcher's messages as somebody looks them up: one by its id, and the dead letters."""

import asyncpg

from server.db import Pool


class History:
    """Reads only."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def message(self, message_id: str) -> asyncpg.Record | None:
        return await self._pool.fetchrow(
            """select id, kind, state::text, url, method, header, body, max_retries, retry_delay, callback,
                      failure_callback, callback_options, failure_callback_options, redact, labels, caller_ip,
                      response_status,
                      (extract(epoch from not_before) * 1000)::bigint as not_before_ms,
                      (extract(epoch from created_at) * 1000)::bigint as created_at_ms,
                      (extract(epoch from due_at) * 1000)::bigint as due_at_ms,
                      (extract(epoch from finished_at) * 1000)::bigint as finished_at_ms
                 from dispatcher.messages where id = $1""",
            message_id,
        )

    async def dead_letters(
        self,
        count: int,
        *,
        message_id: str | None = None,
        url: str | None = None,
        dlq_id: str | None = None,
        after: str | None = None,
    ) -> list[asyncpg.Record]:
        """Newest first: all, or those that fit; `after` is the dlqId of the last one seen."""
        return await self._pool.fetch(
            """select id, kind, url, method, header, body, max_retries, retry_delay, callback, failure_callback,
                      callback_options, failure_callback_options, redact, labels, caller_ip, dlq_id,
                      response_status, response_header, response_body,
                      (extract(epoch from not_before) * 1000)::bigint as not_before_ms,
                      (extract(epoch from created_at) * 1000)::bigint as created_at_ms
                 from dispatcher.messages
                where state = 'failed' and ($2::text is null or id = $2) and ($3::text is null or url = $3)
                  and ($4::text is null or dlq_id = $4)
                  and ($5::text is null or (finished_at, id) < (
                        select finished_at, id from dispatcher.messages where state = 'failed' and dlq_id = $5))
                order by finished_at desc, id desc limit $1""",
            count,
            message_id,
            url,
            dlq_id,
            after,
        )
