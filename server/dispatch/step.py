"""Follows a step of the clock: what is to happen at a time in Postgres is put off, or brought forward, by as much.

Else an hour forward would end every task that is under way, and an hour back would leave every retry, and the lease
of a dispatcher that died, waiting for it.
"""

from typing import TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def follow_step(connection: Connection, seconds: float) -> None:
    """Move all that is pending by `seconds`. To be called once a step, by the one who owns this Postgres."""
    async with connection.transaction():
        for statement in (
            """update public.image_generations set deadline_at = deadline_at + $1 * interval '1 second'
                where status in ('pending', 'processing')""",
            """update taskbeam.dispatches set next_at = next_at + $1 * interval '1 second',
                      leased_until = leased_until + $1 * interval '1 second' where sent_at is null""",
            """update taskbeam.dispatches set lookup_at = lookup_at + $1 * interval '1 second',
                      lookup_leased_until = lookup_leased_until + $1 * interval '1 second'
                where lookup_at is not null or lookup_leased_until is not null""",
            """update dispatcher.messages set due_at = due_at + $1 * interval '1 second',
                      leased_until = leased_until + $1 * interval '1 second'
                where state in ('created', 'active', 'retry')""",
            "update dispatcher.deduplications set expires_at = expires_at + $1 * interval '1 second'",
            "update taskbeam.callbacks_seen set seen_at = seen_at + $1 * interval '1 second'",
        ):
            await connection.execute(statement, seconds)
