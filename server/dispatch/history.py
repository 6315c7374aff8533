"""The dispatcher's messages as somebody looks them up: one by its id, and the dead letters."""

from collections.abc import Sequence
from itertools import accumulate

import asyncpg

from server.db import Pool

# Of a page of dead letters, unless its first alone has more: each may carry a picture.
PAGE_BYTES_MAX = 8 * 1024 * 1024


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
    ) -> tuple[Sequence[asyncpg.Record], bool]:
        """Newest first, all or those that fit, and whether there are more; `after` is the dlqId of the last one seen.

        Fewer than `count` where they are large.
        """
        found = await self._pool.fetch(
            """select id, octet_length(body) + coalesce(octet_length(response_body), 0) as bytes
                 from dispatcher.messages
                where state = 'failed' and ($2::text is null or id = $2) and ($3::text is null or url = $3)
                  and ($4::text is null or dlq_id = $4)
                  and ($5::text is null or (finished_at, id) < (
                        select finished_at, id from dispatcher.messages where state = 'failed' and dlq_id = $5))
                order by finished_at desc, id desc limit $1""",
            count + 1,
            message_id,
            url,
            dlq_id,
            after,
        )
        totals = accumulate(row["bytes"] for row in found[:count])
        page = sum(n == 0 or total <= PAGE_BYTES_MAX for n, total in enumerate(totals))
        rows = await self._pool.fetch(
            """select id, kind, url, method, header, body, max_retries, retry_delay, callback, failure_callback,
                      callback_options, failure_callback_options, redact, labels, caller_ip, dlq_id,
                      response_status, response_header, response_body,
                      (extract(epoch from not_before) * 1000)::bigint as not_before_ms,
                      (extract(epoch from created_at) * 1000)::bigint as created_at_ms
                 from dispatcher.messages where state = 'failed' and id = any ($1)
                order by finished_at desc, id desc""",
            [row["id"] for row in found[:page]],
        )
        return rows, len(found) > page
